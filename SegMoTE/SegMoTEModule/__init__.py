"""What SegMoTE.py is made of, beside the panel: the logic and the self-test."""
