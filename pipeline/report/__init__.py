"""The report of a run: one HTML page with pictures, and the same pictures as files for the tracker."""
