"""AWS Bedrock's Converse and ConverseStream, and its embedding models by InvokeModel."""
