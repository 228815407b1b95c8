"""Settings: defaults, settings files that are parsed and never executed, flags, and what a user is told."""

import json

import pytest
from corpora import ROOT

from minigpt.common.errors import UserError
from minigpt.settings.parse import KNOWN, check_value, load_settings, settings_of
from minigpt.settings.stages import (
    STAGES,
    CorrectionSettings,
    PrepareSettings,
    PrepareSftSettings,
    RougeSettings,
    SampleSettings,
    TokenizerSettings,
    TrainSettings,
)


@pytest.fixture
def settings_file(tmp_path):
    """Write a settings file; returns its path as an argument."""

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def error_of(script, *argv):
    """The line that the user is shown for these arguments."""
    with pytest.raises(UserError) as caught:
        load_settings(script, list(argv))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Where a value comes from


def test_without_arguments_every_setting_has_its_default():
    assert load_settings(TrainSettings, []) == TrainSettings()


def test_a_file_overrides_the_default_and_a_flag_overrides_the_file(settings_file):
    path = settings_file("batch_size = 3\nn_layer = 5\n")
    # The flag stands before the file, and is the stronger one all the same.
    settings = load_settings(TrainSettings, ["--batch_size=7", path])
    assert (settings.batch_size, settings.n_layer, settings.n_head) == (7, 5, TrainSettings().n_head)


def test_of_two_files_the_later_one_wins(settings_file):
    paths = [settings_file("seed = 1\nn_embd = 64\n", "a.py"), settings_file("seed = 2\n", "b.py")]
    settings = load_settings(TrainSettings, paths)
    assert (settings.seed, settings.n_embd) == (2, 64)


def test_a_flag_wins_over_the_setting_of_a_file_that_would_take_its_place(settings_file, capsys):
    path = settings_file("max_epochs = 8\nbatch_tokens = 8192\nmax_iters = 5\n")
    settings = load_settings(TrainSettings, [path, "--max_iters=30"])
    assert (settings.max_iters, settings.max_epochs, settings.batch_tokens) == (30, 0.0, 8192)
    assert capsys.readouterr().out == f"note: max_iters=30 (command line) takes the place of max_epochs=8 ({path})\n"
    settings = load_settings(TrainSettings, [path, settings_file("batch_size = 4\n", "later.py")])
    assert (settings.batch_size, settings.batch_tokens, settings.max_epochs) == (4, 0, 8.0)
    assert "takes the place of batch_tokens=8192" in capsys.readouterr().out
    # Of one place, the setting that says so takes the other's.
    settings = load_settings(TrainSettings, [path, "--max_iters=30", "--max_epochs=2"])
    assert (settings.max_iters, settings.max_epochs) == (30, 2.0)
    assert capsys.readouterr().out == ""


def test_a_file_may_hold_settings_of_other_scripts(settings_file):
    assert (
        load_settings(TokenizerSettings, [settings_file("n_layer = 2\ntokenizer_vocab = 999\n")]).tokenizer_vocab == 999
    )


def test_the_arguments_come_from_the_command_line_when_none_are_given(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--seed=5"])
    assert load_settings(TrainSettings).seed == 5


def test_a_list_changed_in_one_record_leaves_other_records_alone():
    PrepareSettings().input_dir.append("elsewhere")
    assert "elsewhere" not in PrepareSettings().input_dir


# Values


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("max_iters = 10 * 1000", "max_iters", 10000),
        ("max_iters = 7 // 2 + 9 % 5 - 1", "max_iters", 6),
        ("warmup_iters = -(-3)", "warmup_iters", 3),
        ("learning_rate = 6e-4 / 2", "learning_rate", 3e-4),
        ("batch_size = 4\nmax_iters = batch_size * 25\n", "max_iters", 100),
        ("seed = 1\nseed = seed + 1", "seed", 2),
        ("dropout = 0", "dropout", 0.0),
        ("bias = True", "bias", True),
        ('out_dir = "出/run"', "out_dir", "出/run"),
        ('input_dir = ["a", "b"]', "input_dir", ["a", "b"]),
        ('input_dir = ("a", "b")', "input_dir", ["a", "b"]),
        ('"""A docstring."""\n# a remark\n\nseed = 3  # another\n', "seed", 3),
        ("\ufeffseed = 4\r\n", "seed", 4),
    ],
)
def test_a_settings_file_holds_literals_lists_and_arithmetic(settings_file, text, key, value):
    stage = PrepareSettings if key == "input_dir" else TrainSettings
    got = getattr(load_settings(stage, [settings_file(text)]), key)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("script", "flag", "value"),
    [
        (TrainSettings, "--batch_size=8", 8),
        (TrainSettings, "--max_iters=10_000", 10000),
        (TrainSettings, "--learning_rate=1e-4", 1e-4),
        (TrainSettings, "--grad_clip=2", 2.0),
        (TrainSettings, "--grad_clip=+1.5", 1.5),
        (TrainSettings, "--bias=True", True),
        (TrainSettings, "--bias=false", False),
        (TrainSettings, "--sample_prompt=", ""),
        (SampleSettings, "--prompt=123", "123"),
        (SampleSettings, "--prompt=True", "True"),
        (SampleSettings, "--prompt=一=二，['三']", "一=二，['三']"),
        (PrepareSettings, "--input_dir=a", ["a"]),
        (PrepareSettings, "--input_dir=a,b/c", ["a", "b/c"]),
        (PrepareSettings, "--input_dir=['a', 'b c']", ["a", "b c"]),
        (PrepareSettings, "--input_dir=C:\\new\\texts", ["C:\\new\\texts"]),
        (PrepareSftSettings, "--articles=[]", []),
        # A folder may be called by its date.
        (PrepareSettings, "--input_dir=2024", ["2024"]),
        (PrepareSettings, "--input_dir=20240101,20240201", ["20240101", "20240201"]),
    ],
)
def test_a_flag_is_read_as_its_settings_type(script, flag, value):
    got = getattr(load_settings(script, [flag]), flag[2:].partition("=")[0])
    assert got == value and type(got) is type(value)


# Nothing is executed


@pytest.mark.parametrize(
    "line",
    [
        'seed = __import__("pathlib").Path("ran").write_text("")',
        'open("ran", "w")',
        "import os",
        "seed: int = 3",
        "seed += 1",
        "seed, n_layer = 1, 2",
        "seed = n_layer = 1",
        "if True:\n    seed = 1",
        'out_dir = f"{1}"',
        "seed = [i for i in range(3)]",
        'out_dir = "a" + "b"',
        'out_dir = "a" * 1000000000',
        "seed = n_layer",
        "seed = 1 / 0",
        "seed = = 1",
        "seed = 'open",
    ],
)
def test_what_is_no_plain_assignment_is_refused_with_its_line_and_not_run(settings_file, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    path = settings_file("# a remark\n" + line + "\n")
    assert f"{path}, line 2" in error_of(TrainSettings, path)
    assert not (tmp_path / "ran").exists()


# What the user is told


@pytest.mark.parametrize(("typo", "meant"), [("batchsize", "batch_size"), ("n_layers", "n_layer"), ("sed", "seed")])
def test_a_misspelt_setting_names_the_nearest_one_and_the_place(settings_file, typo, meant):
    message = error_of(TrainSettings, f"--{typo}=1")
    assert repr(typo) in message and f"did you mean {meant}?" in message
    path = settings_file(f"# a remark\n{typo} = 1\n")
    message = error_of(TrainSettings, path)
    assert f"{path}, line 2" in message and f"did you mean {meant}?" in message


def test_a_setting_that_resembles_none_points_to_help():
    assert "--help" in error_of(TrainSettings, "--zzzzqqqq=1")


@pytest.mark.parametrize(
    ("flag", "key", "wanted", "got"),
    [
        ("--batch_size=many", "batch_size", "int", "'many' (str)"),
        ("--batch_size=2.5", "batch_size", "int", "2.5 (float)"),
        ("--batch_size=True", "batch_size", "int", "True (bool)"),
        ("--batch_size=", "batch_size", "int", "'' (str)"),
        ("--learning_rate=fast", "learning_rate", "float", "'fast' (str)"),
        ("--learning_rate=True", "learning_rate", "float", "True (bool)"),
        ("--learning_rate=nan", "learning_rate", "float", "'nan' (str)"),
        ("--bias=1", "bias", "True or False", "1 (int)"),
        ("--bias=yes", "bias", "True or False", "'yes' (str)"),
    ],
)
def test_a_wrong_type_shows_the_type_wanted_and_the_value_given(flag, key, wanted, got):
    message = error_of(TrainSettings, flag)
    assert f"{key} wants {wanted}" in message and f"got {got}" in message


@pytest.mark.parametrize(
    ("text", "wanted", "got"),
    [
        ("batch_size = 5 / 2", "int", "2.5 (float)"),
        ("out_dir = 3", "str", "3 (int)"),
        ("out_dir = None", "str", "None (NoneType)"),
        ("input_dir = 3", "a list of str", "3 (int)"),
        ("input_dir = ['a', 3]", "a list of str", "3 (int)"),
    ],
)
def test_a_wrong_type_in_a_file_names_the_file(settings_file, text, wanted, got):
    path = settings_file(text)
    message = error_of(TrainSettings, path)
    assert path in message and f"wants {wanted}, got {got}" in message


@pytest.mark.parametrize(
    ("stage", "flag", "words"),
    [
        (PrepareSettings, "--overflow=wrap", ("overflow", "'truncate'", "'split'", "'wrap'")),
        (TrainSettings, "--architecture=mamba", ("architecture", "'gpt2'", "'qwen3'", "'mamba'")),
    ],
)
def test_a_value_outside_the_choices_shows_the_choices(stage, flag, words):
    message = error_of(stage, flag)
    assert all(word in message for word in words)


def test_a_setting_of_another_script_names_the_scripts_that_have_it():
    message = error_of(PrepareSettings, "--n_layer=2")
    assert "train.py" in message and "data/prepare.py" in message


@pytest.mark.parametrize("flag", ["--batch_size", "-batch_size=3", "-x"])
def test_a_flag_that_is_not_name_equals_value_shows_how_to_write_it(flag):
    assert f"{flag}: write it as --name=value" in error_of(TrainSettings, flag)


def test_a_settings_file_that_is_not_there_is_named(tmp_path):
    assert "nowhere.py is not there" in error_of(TrainSettings, str(tmp_path / "nowhere.py"))
    assert str(tmp_path) in error_of(TrainSettings, str(tmp_path))


def test_a_path_that_goes_on_below_a_file_is_named(settings_file):
    path = settings_file("seed = 1\n") + "/more.py"
    assert path in error_of(TrainSettings, path)


@pytest.mark.parametrize("content", [b"seed = '\xff\xfe'", b"seed = 1\x00"])
def test_a_file_that_is_no_text_is_named(settings_file, content):
    path = settings_file(content)
    assert path in error_of(TrainSettings, path)


# The record itself


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.SCRIPT)
def test_help_lists_the_scripts_own_settings_with_default_and_meaning(stage, capsys):
    assert (ROOT / stage.SCRIPT.split()[0]).is_file()
    with pytest.raises(SystemExit) as stopped:
        load_settings(stage, ["--help"])
    shown = capsys.readouterr().out
    own = settings_of(stage)
    assert stopped.value.code == 0 and stage.SCRIPT in shown
    for name in KNOWN:
        assert (f"  --{name}=" in shown) == (name in own)
    for name, (field, _) in own.items():
        default = getattr(stage(), name)
        assert f"--{name}={default!r}" in shown and field.metadata["help"] in shown
        assert check_value(name, default, "defaults", own[name]) == default


def test_a_setting_means_the_same_in_every_stage_that_has_it():
    for stage in STAGES:
        for name, (field, kind) in settings_of(stage).items():
            known, known_kind = KNOWN[name]
            assert kind == known_kind, name
            if name not in ("batch_size", "dtype"):  # what is chosen from differs
                assert field.metadata == known.metadata, name


@pytest.mark.parametrize(
    ("stage", "flag", "said"),
    [
        (TrainSettings, "--dropout=1", "dropout is a share from 0 to 1, not 1"),
        (TrainSettings, "--stop_at_answered=90", "stop_at_answered is 90.0; it must be at most 1"),
        (SampleSettings, "--top_p=1.5", "at most 1"),
        (TrainSettings, "--dtype=int8", "'bfloat16', 'float16', not 'int8'"),
        (SampleSettings, "--dtype=bf16", "not 'bf16' (write bfloat16)"),
        (SampleSettings, "--precision=int8", "precision is now called dtype"),
        (CorrectionSettings, "--shots=0,many", "shots wants a list of int, got 'many' (str)"),
        (CorrectionSettings, "--shots=0,-1", "shots is -1; it must be at least 0"),
        (PrepareSettings, "--weights=1,x", "weights wants a list of float"),
    ],
)
def test_a_value_outside_its_range_or_of_an_earlier_version_is_answered_in_one_line(stage, flag, said):
    assert said in error_of(stage, flag)


def test_lists_have_the_type_of_their_setting(settings_file):
    assert load_settings(CorrectionSettings, ["--shots=0,4"]).shots == [0, 4]
    assert load_settings(PrepareSettings, [settings_file("weights = [2, 0.5]")]).weights == [2.0, 0.5]
    assert load_settings(RougeSettings, ["--ckpt=out/a, out/b"]).ckpt == ["out/a", "out/b"]
    assert load_settings(RougeSettings, [settings_file('ckpt = "out/a,out/b"')]).ckpt == ["out/a", "out/b"]


def test_settings_of_other_scripts_in_a_file_are_checked_and_left_out(settings_file):
    settings = load_settings(TrainSettings, [settings_file('auth = "me:secret"\nport = 80\nn_layer = 3\n')])
    assert settings.n_layer == 3 and "auth" not in settings.to_dict() and "secret" not in str(vars(settings))
    assert "port is 99999; it must be at most 65535" in error_of(TrainSettings, settings_file("port = 99999\n"))


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.py")), ids=lambda p: p.name)
def test_the_settings_files_of_the_repository_are_valid(path):
    assert any(load_settings(stage, [str(path)]) != stage() for stage in STAGES)


def test_a_record_survives_json_as_checkpoints_and_logs_keep_it():
    kept = json.loads(json.dumps(TrainSettings().to_dict()))
    assert TrainSettings(**kept) == TrainSettings()
