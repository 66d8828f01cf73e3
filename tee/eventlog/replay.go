package eventlog

import "fmt"

// Replay computes the registers the log leads to in the bank of one
// algorithm: each starts at zero (PCR 0 at the startup locality) and becomes
// H(register ‖ digest) for every event but EV_NO_ACTION. Registers without
// events are absent. An event that lacks a digest of this algorithm is an
// error: the register could not be known.
func (l *Log) Replay(alg Alg) (map[uint32][]byte, error) {
	h := alg.New()
	if h == nil {
		return nil, fmt.Errorf("replaying event log: unknown algorithm %v", alg)
	}
	regs := make(map[uint32][]byte)
	for i := range l.Events {
		e := &l.Events[i]
		if e.Type == NoAction {
			continue
		}
		d := e.Digest(alg)
		if d == nil {
			return nil, fmt.Errorf("replaying event log: event %d (%v, register %d) has no %v digest", i, e.Type, e.Index, alg)
		}
		r, ok := regs[e.Index]
		if !ok {
			r = make([]byte, h.Size())
			if e.Index == 0 {
				r[len(r)-1] = l.StartupLocality
			}
		}
		regs[e.Index] = alg.Sum(r, d)
	}
	return regs, nil
}
