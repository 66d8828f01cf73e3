package sandbox

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/ttrpc"

	"github.com/cloister/cloister/host/agent"
	"github.com/cloister/cloister/host/trace"
)

// Records of what guests were asked to do.
const (
	recordFile = "requests.jsonl"
	// recordBytes bounds each.
	recordBytes = 8 << 20
	// keptRecords is of how many sandboxes that are no more a node keeps them.
	keptRecords = 16
)

// recordsDir is where they are then.
func (s *Sandbox) recordsDir() string { return filepath.Join(filepath.Dir(s.cfg.Root), "requests") }

// interceptors see each request that a guest is sent. A record begins anew with another guest; a pod without one runs all the same.
func (s *Sandbox) interceptors() []ttrpc.UnaryClientInterceptor {
	list := []ttrpc.UnaryClientInterceptor{s.durations.Interceptor()}
	if !s.runtime.Debug.RecordRequests {
		return list
	}
	if s.record != nil {
		s.record.Close()
		s.record = nil
	}
	record, err := agent.NewRecorder(filepath.Join(s.dir, recordFile), recordBytes, s.log)
	if err != nil {
		s.log.Warn("what this guest is asked to do is not recorded", "sandbox", s.cfg.ID, "error", err)
		return list
	}
	s.record = record
	return append(list, record.Interceptor())
}

// endRecord keeps the record of a sandbox whose directory goes. It does nothing the second time.
func (s *Sandbox) endRecord() {
	if s.record == nil {
		return
	}
	s.record.Close()
	s.record = nil
	if err := trace.Keep(filepath.Join(s.dir, recordFile), s.recordsDir(), s.cfg.ID, keptRecords); err != nil {
		s.log.Warn("the record of a sandbox is lost", "sandbox", s.cfg.ID, "error", fmt.Errorf("keeping what its guest was asked to do: %w", err))
	}
}
