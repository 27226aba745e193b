"""What happens to images on their device: resizing, cutting, turning, artificial defects."""
