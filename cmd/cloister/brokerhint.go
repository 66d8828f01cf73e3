package main

import (
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
	"syscall"

	"github.com/cloister/cloister/broker/client"
)

// brokerHint is advice on errors that every command that asks a broker can end with; empty when there is none.
func brokerHint(err error) string {
	var (
		unknown  x509.UnknownAuthorityError
		name     x509.HostnameError
		answered *client.StatusError
	)
	switch {
	case errors.As(err, &unknown):
		return "--kbs-cert FILE names the certificate of the broker, or of its authority"
	case errors.As(err, &name):
		return "give --kbs with a name that the certificate has, or add this one to server.tls_hosts before the broker's first start"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "is the broker running? `cloister-broker serve` prints its URL"
	case !errors.As(err, &answered):
		return ""
	case answered.Status == http.StatusUnauthorized && strings.HasPrefix(answered.Detail, "admin access denied"):
		return "--admin-token FILE, or --client-cert and --client-key, say who you are; a tenant (--kbs …/ns/NAME) has a token of its own"
	case answered.Status == http.StatusNotFound && answered.Detail == "404 page not found":
		return "this broker, or the tenant, does not offer that; tenants are managed at the broker's own URL, without /ns/NAME"
	case answered.Status == http.StatusTooManyRequests:
		return "wait a moment; [limits] of the broker, or the tenant's quota, says how many requests it takes"
	}
	return ""
}
