"""Published data sets in the layouts they are distributed in."""
