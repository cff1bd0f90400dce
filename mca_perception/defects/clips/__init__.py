"""Defect videos: a temporal head that answers frame by frame, its data and its figures."""
