package main

import (
	"regexp"
	"strings"
)

var noAccess = regexp.MustCompile(`registry (\S+) refuses access: `)

// kubeHint says what to do about problems that have one remedy.
func kubeHint(err error) error {
	text := err.Error()
	switch {
	case strings.Contains(text, "would be spoken to in plain HTTP"):
		_, rest, _ := strings.Cut(text, "registry ")
		host, _, _ := strings.Cut(rest, " ")
		return hint(err, "allow it by --insecure-registry %s", host)
	case noAccess.MatchString(text):
		return hint(err, "credentials are docker's: `docker login %s`, or a config.json in the folder that DOCKER_CONFIG names", noAccess.FindStringSubmatch(text)[1])
	case strings.Contains(text, "dial tcp"):
		return hint(err, "without a registry at hand: --image-source oci:DIR, archive:FILE or containerd")
	}
	return err
}
