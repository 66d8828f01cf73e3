package uevent

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/internal/needs"
)

func TestUevents(t *testing.T) {
	u, err := Open()
	if errors.Is(err, fs.ErrPermission) {
		needs.Missing(t, "the right to see device events: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if err := u.WaitFor(t.Context(), "what is there", func() (bool, error) { return true, nil }); err != nil {
		t.Error(err)
	}
	for range 2 { // a wait that was given up does not spoil the next
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := u.WaitFor(ctx, "nothing", func() (bool, error) { return false, nil })
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "waiting for nothing") {
			t.Errorf("got %v", err)
		}
	}
	want := errors.New("broken")
	if err := u.WaitFor(t.Context(), "x", func() (bool, error) { return false, want }); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}
