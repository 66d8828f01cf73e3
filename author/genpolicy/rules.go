package genpolicy

import _ "embed"

//go:embed rules.rego
var rules string

// Rules is the text of Cloister's rules for Kubernetes pods.
func Rules() string { return rules }
