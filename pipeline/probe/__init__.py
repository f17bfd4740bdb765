"""The quality of frozen features: kNN, linear probe and retrieval on the features of two labelled data sets.

Rows stay on the ranks that computed them. All ranks call every function here with the same settings and get the same
result, whatever their number. Needs a process group, even for a single rank.
"""
