"""The fault drill: continuous work by several accounts, while everything is killed at random; then the books are checked."""
