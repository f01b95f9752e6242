"""Between text and token ids: vocabularies, chat templates, replies."""
