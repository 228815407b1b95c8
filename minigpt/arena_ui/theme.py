"""The page's theme: colours, corners and fonts, of a light and a dark page. What a theme cannot say is in page.css.

Text on its background has a contrast of 4.5 or more (WCAG AA); tests/arena_ui/test_browser.py checks this with axe.
"""

import gradio as gr
from gradio.themes.utils import colors, sizes

# Fonts of the system alone: web fonts cannot be loaded everywhere.
FONTS = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
MONO_FONTS = ["ui-monospace", "Consolas", "Noto Sans Mono CJK SC", "monospace"]
CHART_COLOR, CHART_COLOR_SOFT = "#0d9488", "#5eada5"  # readable on both pages


def make_theme():
    """gr.themes.Base in ink, paper and teal."""
    theme = gr.themes.Base(
        primary_hue=colors.teal, secondary_hue=colors.teal, neutral_hue=colors.stone,
        radius_size=sizes.radius_lg, spacing_size=sizes.spacing_md, text_size=sizes.text_md,
        font=FONTS, font_mono=MONO_FONTS,
    )  # fmt: skip
    return theme.set(
        # The page and its blocks
        body_background_fill="*neutral_50", body_background_fill_dark="#141312",
        body_text_color="*neutral_800", body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="*neutral_50", background_fill_primary_dark="#141312",
        background_fill_secondary="*neutral_50", background_fill_secondary_dark="#191816",
        block_background_fill="white", block_background_fill_dark="#1f1d1b",
        block_border_color="*neutral_200", block_border_color_dark="#383431",
        border_color_primary="*neutral_200", border_color_primary_dark="#383431",
        block_shadow="0 1px 2px rgba(28, 25, 23, .04)", block_shadow_dark="none",
        block_title_text_color="*neutral_700", block_title_text_color_dark="*neutral_200",
        block_title_text_weight="600", block_title_text_size="*text_sm",
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_400",
        block_label_background_fill="transparent", block_label_background_fill_dark="transparent",
        block_label_border_width="0px", block_label_shadow="none",
        block_label_text_color="*neutral_600", block_label_text_color_dark="*neutral_400",
        # Inputs
        input_background_fill="white", input_background_fill_dark="#191816",
        input_border_color="*neutral_300", input_border_color_dark="#57534e", input_border_width="1px",
        input_border_color_focus="*primary_600", input_border_color_focus_dark="*primary_400",
        input_placeholder_color="*neutral_500", input_placeholder_color_dark="*neutral_400",
        input_shadow="none", input_shadow_focus="0 0 0 3px rgba(13, 148, 136, .18)",
        color_accent="*primary_700", color_accent_soft="*primary_50", color_accent_soft_dark="#12332f",
        border_color_accent="*primary_300", border_color_accent_dark="*primary_700",
        border_color_accent_subdued="*primary_200", border_color_accent_subdued_dark="#1f4f49",
        link_text_color="*primary_700", link_text_color_dark="*primary_300",
        link_text_color_hover="*primary_800", link_text_color_hover_dark="*primary_200",
        link_text_color_visited="*primary_700", link_text_color_visited_dark="*primary_300",
        slider_color="*primary_700", slider_color_dark="*primary_400", loader_color="*primary_700",
        checkbox_background_color_selected="*primary_700", checkbox_background_color_selected_dark="*primary_600",
        checkbox_border_color="*neutral_400", checkbox_border_color_dark="*neutral_500",
        checkbox_border_color_selected="*primary_700", checkbox_border_color_selected_dark="*primary_600",
        checkbox_label_background_fill_selected="*primary_50", checkbox_label_background_fill_selected_dark="#12332f",
        checkbox_label_border_color_selected="*primary_600", checkbox_label_border_color_selected_dark="*primary_500",
        table_even_background_fill="white", table_even_background_fill_dark="#1f1d1b",
        table_odd_background_fill="*neutral_50", table_odd_background_fill_dark="#191816",
        table_border_color="*neutral_200", table_border_color_dark="#383431",
        code_background_fill="*neutral_100", code_background_fill_dark="#191816",
        # Buttons: one filled kind for what a tab is for, quiet ones for the rest
        button_border_width="1px", button_transition="background-color .12s, border-color .12s",
        button_large_text_weight="600", button_large_text_size="*text_md", button_large_padding="9px 18px",
        button_small_text_weight="500", button_medium_text_weight="500",
        button_large_radius="*radius_md", button_medium_radius="*radius_md", button_small_radius="*radius_md",
        button_primary_background_fill="*primary_700", button_primary_background_fill_dark="*primary_400",
        button_primary_background_fill_hover="*primary_800", button_primary_background_fill_hover_dark="*primary_300",
        button_primary_border_color="*primary_700", button_primary_border_color_dark="*primary_400",
        button_primary_text_color="white", button_primary_text_color_dark="#042f2e",
        button_secondary_background_fill="white", button_secondary_background_fill_dark="#262321",
        button_secondary_background_fill_hover="*neutral_100", button_secondary_background_fill_hover_dark="#332f2c",
        button_secondary_border_color="*neutral_300", button_secondary_border_color_dark="#44403c",
        button_secondary_text_color="*neutral_800", button_secondary_text_color_dark="*neutral_100",
        button_cancel_background_fill="white", button_cancel_background_fill_dark="#262321",
        button_cancel_background_fill_hover="#fef2f2", button_cancel_background_fill_hover_dark="#3b1f1d",
        button_cancel_border_color="#fca5a5", button_cancel_border_color_dark="#7f1d1d",
        button_cancel_text_color="#b91c1c", button_cancel_text_color_dark="#fca5a5",
    )  # fmt: skip
