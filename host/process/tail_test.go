package process

import "testing"

func TestTailIsBounded(t *testing.T) {
	tl := NewTail(10)
	for range 100 {
		_, _ = tl.Write([]byte("abc\n"))
	}
	_, _ = tl.Write([]byte("0123456789ABCDEF"))
	if got := string(tl.bytes()); got != "6789ABCDEF" {
		t.Errorf("tail = %q", got)
	}
}
