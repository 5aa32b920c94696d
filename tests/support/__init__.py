"""What several tests share: fake servers, contents, and nothing that asserts."""
