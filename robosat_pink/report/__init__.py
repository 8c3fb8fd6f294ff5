"""The files that a person opens after a run: report.html, scenes.csv, pictures, the model card."""
