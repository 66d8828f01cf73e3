// Package freeport finds ports for what cannot take one by itself, or has to have the same one again.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// TCP is a port of 127.0.0.1 where nobody listens. It is none of those that Linux gives, by its default from 32768 on, to whoever wants any:
// nobody gets it by chance while its owner is away, and a rule of the host that redirects it takes nothing away from other tests.
func TCP(t testing.TB) int {
	t.Helper()
	var err error
	for range 100 {
		port := 20000 + rand.IntN(12000)
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprint("127.0.0.1:", port)); err == nil {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			return port
		}
	}
	t.Fatal("finding a free port:", err)
	return 0
}
