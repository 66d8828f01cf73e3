// Package loopback tells addresses of this machine, where plain connections are nobody else's to read.
package loopback

import (
	"net"
	"strings"
)

// Is reports whether a host, without port and brackets, is this machine. Names other than "localhost" are not looked up: who answers them
// may change.
func Is(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}
