package refvalue

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Input names the artefacts of a boot.
type Input struct {
	Kernel, Initrd             string // files
	Cmdline                    string // as given to QEMU's -append
	FirmwareCode, FirmwareVars string // files
	// Machines are the shapes the guest may be started with; values for all
	// of them are listed.
	Machines []Machine
	// Initdata is the document; nil leaves PCR 8 out.
	Initdata []byte
}

// Result is the prediction for all machines of an input.
type Result struct {
	// Values are the reference values by name, each a list of accepted ones.
	Values map[string][]string `json:"values"`
	// Boots explain each value: one for each machine and loader.
	Boots []Boot `json:"boots"`
}

// Boot is one predicted boot.
type Boot struct {
	Machine string `json:"machine"`
	// Loader is how QEMU hands the kernel over.
	Loader string         `json:"loader"`
	PCRs   map[int]string `json:"pcrs"`
	Events []Event        `json:"events"`
}

// maxCmdline is what the kernel keeps of a command line.
const maxCmdline = 2048 - len(initrdArgument) - 1

// initrdArgument is appended by OVMF when there is an initrd.
const initrdArgument = " initrd=initrd"

// Compute predicts the registers of a boot.
func Compute(in Input) (*Result, error) {
	if len(in.Machines) == 0 {
		return nil, errors.New("computing reference values: no machine given")
	}
	for _, m := range in.Machines {
		if err := m.validate(); err != nil {
			return nil, fmt.Errorf("machine %s: %w", m, err)
		}
	}
	if err := checkCmdline(in.Cmdline); err != nil {
		return nil, err
	}
	kernel, err := readBounded(in.Kernel, maxKernel)
	if err != nil {
		return nil, fmt.Errorf("reading the kernel: %w", err)
	}
	initrd, err := readBounded(in.Initrd, maxInitrd)
	if err != nil {
		return nil, fmt.Errorf("reading the initrd: %w", err)
	}
	code, err := readBounded(in.FirmwareCode, maxUnpacked)
	if err != nil {
		return nil, fmt.Errorf("reading the firmware: %w", err)
	}
	vars, err := readBounded(in.FirmwareVars, maxUnpacked)
	if err != nil {
		return nil, fmt.Errorf("reading the firmware's variables: %w", err)
	}
	fvs, err := unpackOVMF(code)
	if err != nil {
		return nil, fmt.Errorf("firmware %s: %w", in.FirmwareCode, err)
	}
	if err := checkVariables(vars); err != nil {
		return nil, fmt.Errorf("firmware variables %s: %w", in.FirmwareVars, err)
	}

	res := &Result{Values: map[string][]string{}}
	for _, m := range in.Machines {
		for _, patched := range []bool{true, false} {
			b := Boot{Machine: m.String(), Loader: loaderName(patched), PCRs: map[int]string{}}
			fw, err := firmwareEvents(in.FirmwareCode, fvs, m)
			if err != nil {
				return nil, fmt.Errorf("firmware %s: %w", in.FirmwareCode, err)
			}
			boot, err := kernelEvents(in.Kernel, kernel, uint64(len(initrd)), m, patched)
			if err != nil {
				return nil, fmt.Errorf("kernel %s: %w", in.Kernel, err)
			}
			b.Events = slices.Concat(fw, secureBootEvents(), boot, stubEvents(in.Cmdline, in.Initrd, initrd))
			if in.Initdata != nil {
				ev, err := initdataEvent(in.Initdata)
				if err != nil {
					return nil, err
				}
				b.Events = append(b.Events, ev)
			}
			for pcr, name := range registers() {
				var own []Event
				for _, e := range b.Events {
					if e.PCR == pcr {
						own = append(own, e)
					}
				}
				if len(own) == 0 {
					continue
				}
				v := extend(own)
				b.PCRs[pcr] = v
				if !slices.Contains(res.Values[name], v) {
					res.Values[name] = append(res.Values[name], v)
				}
			}
			res.Boots = append(res.Boots, b)
		}
	}
	return res, nil
}

// maxInitrd bounds an initrd.
const maxInitrd = 1 << 30

func loaderName(patched bool) string {
	if patched {
		return "QEMU before 10: kernel header patched"
	}
	return "QEMU 10 and later: kernel as in the file"
}

func readBounded(name string, limit int64) ([]byte, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > limit {
		return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", name, limit)
	}
	return os.ReadFile(name)
}

func checkCmdline(s string) error {
	if len(s) > maxCmdline {
		return fmt.Errorf("kernel command line has %d bytes, the kernel takes %d", len(s), maxCmdline)
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return fmt.Errorf("kernel command line has byte %#x at %d, expected printable ASCII", s[i], i)
		}
	}
	// QEMU reads this one and changes the kernel header accordingly.
	if strings.Contains(s, "vga=") {
		return errors.New("kernel command line has vga=, whose effect on the measurement is not predicted")
	}
	return nil
}

// firmwareEvents are what goes into PCR 0.
func firmwareEvents(file string, fvs *volumes, m Machine) ([]Event, error) {
	pei, err := runInPlace(fvs.pei, m)
	if err != nil {
		return nil, err
	}
	return []Event{
		newEvent(0, "EV_S_CRTM_VERSION", sha256.Sum256([]byte{0, 0}), "the firmware's version: an empty string"),
		newEvent(0, "EV_EFI_PLATFORM_FIRMWARE_BLOB", sha256.Sum256(pei),
			fmt.Sprintf("PEI volume unpacked from %s, with the platform record for %s", file, m)),
		newEvent(0, "EV_EFI_PLATFORM_FIRMWARE_BLOB", sha256.Sum256(fvs.dxe), "DXE volume unpacked from "+file),
		separator(0),
	}, nil
}

// kernelEvents are what goes into PCR 4.
func kernelEvents(file string, kernel []byte, initrdSize uint64, m Machine, patched bool) ([]Event, error) {
	about := "Authenticode digest of " + file
	if patched {
		var err error
		if kernel, err = qemuHeader(kernel, initrdSize, m); err != nil {
			return nil, err
		}
		about += fmt.Sprintf(", its header patched by QEMU for %d MiB and an initrd of %d bytes", m.MemoryMiB, initrdSize)
	}
	sum, err := Authenticode(kernel)
	if err != nil {
		return nil, err
	}
	const action = "Calling EFI Application from Boot Option"
	return []Event{
		newEvent(4, "EV_EFI_BOOT_SERVICES_APPLICATION", sum, about),
		newEvent(4, "EV_EFI_ACTION", sha256.Sum256([]byte(action)), action),
		separator(4),
	}, nil
}

// stubEvents are what the kernel's EFI stub measures into PCR 9.
func stubEvents(cmdline, file string, initrd []byte) []Event {
	options := cmdline
	if len(initrd) > 0 {
		options += initrdArgument
	}
	out := []Event{newEvent(9, "EV_EVENT_TAG", sha256.Sum256(append(utf16le(options), 0, 0)),
		fmt.Sprintf("LOADED_IMAGE::LoadOptions: command line %q in UTF-16 with its end", options))}
	if len(initrd) > 0 {
		out = append(out, newEvent(9, "EV_EVENT_TAG", sha256.Sum256(initrd), "Linux initrd: "+file))
	}
	return out
}
