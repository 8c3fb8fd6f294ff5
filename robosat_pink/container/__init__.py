"""The SageMaker training-container contract and the machine below it: paths of /opt/ml, stop requests, hardware."""
