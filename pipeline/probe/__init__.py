"""What frozen features are worth: kNN, linear probe and retrieval, on the features of two labelled data sets.

Rows lie where they were computed, on the ranks. Every function here is called by all of them with the same settings,
and gives all of them the same result, whatever their number. Needs a process group, if only of one rank.
"""
