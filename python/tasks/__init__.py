"""Ready experiments: `signals` (the paper's 1-D experiment), `digits` (real scans), and what they share."""
