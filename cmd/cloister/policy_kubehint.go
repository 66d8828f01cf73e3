package main

import (
	"errors"
	"net"

	"github.com/cloister/cloister/author/imagesource"
)

// kubeHint says what to do about problems that have one remedy.
func kubeHint(err error) error {
	var plain *imagesource.PlainHTTPError
	var access *imagesource.AccessError
	var connection *net.OpError
	switch {
	case errors.As(err, &plain):
		return hint(err, "allow it by --insecure-registry %s", plain.Host)
	case errors.As(err, &access):
		return loginHint(err, access.Host)
	case errors.As(err, &connection) && connection.Op == "dial":
		return hint(err, "without a registry at hand: --image-source oci:DIR, archive:FILE or containerd")
	}
	return err
}
