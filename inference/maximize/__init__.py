"""Maximum likelihood along smoothed scores, and fits of distributions by Markov score climbing."""
