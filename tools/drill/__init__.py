"""The fault drill: accounts work without end while everything is killed at random; then the books are checked."""
