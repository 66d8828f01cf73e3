package dcap

import (
	"fmt"
	"slices"
)

// Status is Intel's word on a TCB.
type Status string

// Statuses. Revoked is never a claim: it is an error, a TCBError.
const (
	UpToDate                             Status = "UpToDate"
	SWHardeningNeeded                    Status = "SWHardeningNeeded"
	ConfigurationNeeded                  Status = "ConfigurationNeeded"
	ConfigurationAndSWHardeningNeeded    Status = "ConfigurationAndSWHardeningNeeded"
	OutOfDate                            Status = "OutOfDate"
	OutOfDateConfigurationNeeded         Status = "OutOfDateConfigurationNeeded"
	TDRelaunchAdvised                    Status = "TDRelaunchAdvised"
	TDRelaunchAdvisedConfigurationNeeded Status = "TDRelaunchAdvisedConfigurationNeeded"
	Revoked                              Status = "Revoked"
	// NotSupported is not Intel's word but its verifier's, for a TCB below every level. Like Revoked it is only ever an error.
	NotSupported Status = "TCB_NOT_SUPPORTED"
)

// TCBError refuses a platform whose signatures are good for the state of its TCB.
type TCBError struct {
	Status     Status // Revoked or NotSupported
	Advisories []string
	why        string
}

// Error says which TCB, and what was expected of it.
func (e *TCBError) Error() string { return e.why }

func notSupported(format string, args ...any) error {
	return &TCBError{Status: NotSupported, why: fmt.Sprintf(format, args...)}
}

// platformStatuses may stand in TCB info, identityStatuses at an enclave or module.
var (
	platformStatuses = []Status{UpToDate, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded,
		OutOfDate, OutOfDateConfigurationNeeded, Revoked}
	identityStatuses = []Status{UpToDate, OutOfDate, Revoked}
)

func (v verdict) check() error {
	if !slices.Contains(platformStatuses, v.Status) {
		return fmt.Errorf("TCB status is %q, expected one of %q", v.Status, platformStatuses)
	}
	return nil
}

func (s Status) outOfDate() bool { return s == OutOfDate || s == OutOfDateConfigurationNeeded }

// with merges the status of a part, which is one of identityStatuses, into that of the platform: the worse of both, keeping
// that a configuration is needed.
func (s Status) with(part Status) Status {
	switch {
	case s == Revoked || part == Revoked:
		return Revoked
	case part != OutOfDate:
		return s
	case s == UpToDate || s == SWHardeningNeeded:
		return OutOfDate
	case s == ConfigurationNeeded || s == ConfigurationAndSWHardeningNeeded:
		return OutOfDateConfigurationNeeded
	}
	return s
}

// relaunch turns an outdated status into the advice to start the TD anew: the platform was updated under a running TD.
func (s Status) relaunch() Status {
	if s == OutOfDateConfigurationNeeded {
		return TDRelaunchAdvisedConfigurationNeeded
	}
	return TDRelaunchAdvised
}
