package agent

import (
	"bytes"
	"encoding/binary"
	"net"
	"path/filepath"
	"testing"

	"github.com/containerd/ttrpc"

	"github.com/cloister/cloister/wire/agent"
)

func TestFrames(t *testing.T) {
	frame := func(kind byte, body int) []byte {
		b := make([]byte, frameHeader+body)
		binary.BigEndian.PutUint32(b, uint32(body))
		b[frameType] = kind
		return b
	}
	all := bytes.Join([][]byte{frame(frameRequest, 5), frame(frameResponse, 0), frame(frameRequest, 0), frame(frameResponse, 30), frame(frameRequest, 7)}, nil)
	for size := 1; size <= len(all); size++ {
		var f frames
		ended := 0
		for at := 0; at < len(all); at += size {
			ended += f.pass(all[at:min(at+size, len(all))], frameRequest)
		}
		if ended != 3 {
			t.Errorf("in pieces of %d bytes: %d requests", size, ended)
		}
	}
}

// TestLastAnswer destroys the sandbox by the only request of a connection, whose answer has to arrive.
func TestLastAnswer(t *testing.T) {
	for range 200 {
		a := New(Config{Gate: &recordingGate{allow: true}, Log: discard()})
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- a.Serve(t.Context(), l) }()
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		client := ttrpc.NewClient(conn)
		if _, err := agent.NewAgentServiceClient(client).DestroySandbox(t.Context(), &agent.DestroySandboxRequest{}); err != nil {
			t.Fatal(err)
		}
		client.Close()
		if err := <-served; err != nil {
			t.Fatal(err)
		}
	}
}
