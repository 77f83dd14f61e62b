"""The verifier: appraises a service's evidence under a relying party's policy (RFC 9334)."""
