package snp

import "fmt"

// Policy is the guest policy the owner asked for at launch (evidence-layouts.md section 1.2).
type Policy uint64

// ABIMinor is the lowest minor firmware ABI the guest may run on.
func (p Policy) ABIMinor() uint8 { return uint8(p) }

// ABIMajor is the lowest major firmware ABI the guest may run on.
func (p Policy) ABIMajor() uint8 { return uint8(p >> 8) }

// SMTAllowed tells whether the guest runs on hosts with SMT.
func (p Policy) SMTAllowed() bool { return p&(1<<16) != 0 }

// ReservedOne is bit 17, which firmware wants set.
func (p Policy) ReservedOne() bool { return p&(1<<17) != 0 }

// MigrateMA tells whether a migration agent may be associated.
func (p Policy) MigrateMA() bool { return p&(1<<18) != 0 }

// Debug tells whether the host may read and write the guest's memory.
func (p Policy) Debug() bool { return p&(1<<19) != 0 }

// SingleSocket tells whether the guest may run on one socket only.
func (p Policy) SingleSocket() bool { return p&(1<<20) != 0 }

// CXLAllowed tells whether CXL may be populated.
func (p Policy) CXLAllowed() bool { return p&(1<<21) != 0 }

// AES256XTS tells whether memory must be encrypted with AES-256-XTS.
func (p Policy) AES256XTS() bool { return p&(1<<22) != 0 }

// RAPLDisabled tells whether running average power limit must be off.
func (p Policy) RAPLDisabled() bool { return p&(1<<23) != 0 }

// CiphertextHiding tells whether DRAM ciphertext must be hidden from the host.
func (p Policy) CiphertextHiding() bool { return p&(1<<24) != 0 }

// PageSwapDisabled tells whether the host may not move pages.
func (p Policy) PageSwapDisabled() bool { return p&(1<<25) != 0 }

// PlatformInfo is what the firmware says of the host. Unknown bits are seen on real machines.
type PlatformInfo uint64

// SMTEnabled is bit 0.
func (p PlatformInfo) SMTEnabled() bool { return p&(1<<0) != 0 }

// TSMEEnabled is bit 1, transparent memory encryption.
func (p PlatformInfo) TSMEEnabled() bool { return p&(1<<1) != 0 }

// ECCEnabled is bit 2.
func (p PlatformInfo) ECCEnabled() bool { return p&(1<<2) != 0 }

// RAPLDisabled is bit 3.
func (p PlatformInfo) RAPLDisabled() bool { return p&(1<<3) != 0 }

// CiphertextHiding is bit 4.
func (p PlatformInfo) CiphertextHiding() bool { return p&(1<<4) != 0 }

// AliasCheckComplete is bit 5: no two addresses reach one cell of memory.
func (p PlatformInfo) AliasCheckComplete() bool { return p&(1<<5) != 0 }

// SigningKey is the kind of key that signed a report.
type SigningKey uint8

// Signing keys.
const (
	VCEK SigningKey = 0 // of the chip
	VLEK SigningKey = 1 // of a cloud provider
	None SigningKey = 7 // the report is not signed
)

// String is the name AMD uses.
func (k SigningKey) String() string {
	switch k {
	case VCEK:
		return "VCEK"
	case VLEK:
		return "VLEK"
	case None:
		return "none"
	}
	return fmt.Sprintf("reserved(%d)", uint8(k))
}

// KeyInfo is the field at 0x048.
type KeyInfo uint32

// AuthorKeyEnabled tells whether AuthorKeyDigest has a meaning.
func (k KeyInfo) AuthorKeyEnabled() bool { return k&(1<<0) != 0 }

// MaskChipKey tells whether the host hides the chip's number.
func (k KeyInfo) MaskChipKey() bool { return k&(1<<1) != 0 }

// SigningKey is who signed.
func (k KeyInfo) SigningKey() SigningKey { return SigningKey(k >> 2 & 7) }
