package sandbox

import (
	"strings"

	"github.com/cloister/cloister/wire/initdata"
)

// upperOption marks the storage of a writable layer, in requests and in the policies that let one through.
const upperOption = "X-kata.overlay-upper"

// scratchSize is the size in bytes of the disk for what each container writes over attached layers; 0 is none. Policies that were generated
// before there were such disks refuse them, and say nothing of them: their pods write to memory, as they always have.
func (s *Sandbox) scratchSize() int64 {
	if !s.runtime.Confidential() || s.runtime.Storage.ScratchMiB == 0 {
		return 0
	}
	policy := string(s.cfg.Runtime.Policy) // it takes the place of the other
	if policy == "" {
		doc, err := initdata.Parse(s.cfg.Runtime.Initdata)
		if err != nil {
			return 0 // the guest has said what is wrong with it
		}
		policy = doc.Data[initdata.KeyPolicy]
	}
	if !strings.Contains(policy, upperOption) {
		s.log.Info("what containers write goes to the guest's memory, because the pod's policy knows no disks for it", "sandbox", s.cfg.ID)
		return 0
	}
	return int64(s.runtime.Storage.ScratchMiB) << 20
}
