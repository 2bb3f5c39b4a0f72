"""What the layers of a decoder read: text, states block by block, statistics and moments of inputs."""
