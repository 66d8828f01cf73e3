package main

import (
	"testing"
	"time"
)

func TestGrace(t *testing.T) {
	seconds := func(n int64) *int64 { return &n }
	for _, tc := range []struct {
		flag     time.Duration
		manifest *int64
		want     time.Duration
	}{
		{0, nil, 0}, {0, seconds(45), 45 * time.Second}, {time.Minute, seconds(45), time.Minute}, {0, seconds(0), 1},
	} {
		if got := graceOf(tc.flag, tc.manifest); got != tc.want {
			t.Errorf("flag %s with a manifest of %v: %s, want %s", tc.flag, tc.manifest, got, tc.want)
		}
	}
	// Without the flag, stopping leaves the pod its own grace period: zero would be SIGKILL right after SIGTERM.
	if got := stopCmd(&app{}).Flag("grace").DefValue; got != "-1s" {
		t.Errorf("the grace period of `cloister stop` is %s by default, want -1s", got)
	}
}
