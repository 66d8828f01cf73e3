package dcap

import (
	"crypto/sha256"
	"fmt"
)

// CheckPinned compares the default root with the values of attestation-service.md section 4.5.
func CheckPinned(o Options) error {
	root, err := o.root()
	if err != nil {
		return err
	}
	const der = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
	if got := fmt.Sprintf("%x", sha256.Sum256(root.Raw)); got != der {
		return fmt.Errorf("SHA-256 is %s, expected %s", got, der)
	}
	key, err := p256Key(root)
	if err != nil {
		return err
	}
	const point = "040ba9c4c0c0c86193a3fe23d6b02cda10a8bbd4e88e48b4458561a36e705525f5" +
		"67918e2edc88e40d860bd0cc4ee26aacc988e505a953558c453f6b0904ae7394"
	if xy, err := key.Bytes(); err != nil || fmt.Sprintf("%x", xy) != point {
		return fmt.Errorf("key is %x (%v), expected %s", xy, err, point)
	}
	const id = "46e403bd34f05a3f2817ab9badcaacc7ffc98e0f261008cd30dae936cace18d5dcf58eef31463613de1570d516200993"
	if got := rootKeyID(root); got != id {
		return fmt.Errorf("root_key_id is %s, expected %s", got, id)
	}
	return checkName(root, nameRoot)
}
