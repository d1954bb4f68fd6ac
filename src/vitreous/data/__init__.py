"""From files to batches: source -> view -> batch; nothing here knows of models or training."""
