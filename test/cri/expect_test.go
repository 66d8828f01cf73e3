package cri

import (
	"strings"
	"sync"
	"testing"
	"time"
)

// expect is a writer that a test waits on for texts.
type expect struct {
	t    testing.TB
	mu   sync.Mutex
	all  strings.Builder
	more chan struct{}
}

func newExpect(t testing.TB) *expect { return &expect{t: t, more: make(chan struct{}, 1)} }

func (e *expect) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all.Write(p)
	select {
	case e.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (e *expect) text() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.all.String()
}

// wait returns when the text has come.
func (e *expect) wait(text string) {
	e.t.Helper()
	deadline := time.After(exitTimeout)
	for !strings.Contains(e.text(), text) {
		select {
		case <-e.more:
		case <-deadline:
			e.t.Errorf("%q did not come, there came %q", text, e.text())
			return
		}
	}
}
