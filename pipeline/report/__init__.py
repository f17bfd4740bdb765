"""One HTML page with pictures about a run, and the same pictures as files for the tracker."""
