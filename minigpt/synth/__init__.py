"""Questions and answers about articles, asked of a large model: prompt, reply, rules, files and the work itself."""
