"""From click sessions to training data and held-out rankings: what users chose, corrected for what they were shown."""
