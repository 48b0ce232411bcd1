"""What is computed: tasks as data, in chapters or as a stream."""
