"""The course's own machinery: the learner's workspace, and (with their issues) exercises and widgets."""
