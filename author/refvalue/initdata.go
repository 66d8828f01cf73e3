package refvalue

import (
	"fmt"

	"github.com/cloister/cloister/wire/initdata"
	"github.com/cloister/cloister/wire/measured"
)

// registers names the reference value that each predicted register is
// compared with.
func registers() map[int]string {
	return map[int]string{
		0: measured.TPMPCR00,
		4: measured.TPMPCR04,
		7: measured.TPMPCR07,
		8: measured.TPMInitData,
		9: measured.TPMPCR09,
	}
}

// initdataEvent is what the guest extends into PCR 8 before it uses any of
// the document.
func initdataEvent(doc []byte) (Event, error) {
	alg, sum, err := initdata.Digest(doc)
	if err != nil {
		return Event{}, fmt.Errorf("digest of the initdata: %w", err)
	}
	if alg != initdata.SHA256 || len(sum) != 32 {
		return Event{}, fmt.Errorf("initdata has algorithm %q; a TPM takes %s only", alg, initdata.SHA256)
	}
	return newEvent(8, "initdata", [32]byte(sum), "digest of the initdata document, extended by the guest"), nil
}
