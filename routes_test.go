package viewersession

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

func TestDocumentIDFormat(t *testing.T) {
	for _, test := range []struct {
		format   string
		accepted []string
		refused  []string
	}{
		{"[0-9]+", []string{"1", "123"}, []string{"", "a", "1a", "a1", "1\n", "1\n2", " 1"}},
		{"a|b", []string{"a", "b"}, []string{"ab", "ax", "xb", "aa"}},
		{"", []string{"a", strings.Repeat("x", 128)}, []string{"", strings.Repeat("x", 129), "a.b", "a b", "ä"}},
		{"(?i)[a-f]{2}", []string{"aB"}, []string{"abc", "ag"}},
		{"(?m)^a$", []string{"a"}, []string{"a\nb", "b\na"}},
		{`.+\.pdf`, []string{"a.pdf", "ü.pdf"}, []string{".pdf", "a.pdfx", "a.pdf\n"}},
	} {
		accepts, err := newIDFormat(test.format)
		if err != nil {
			t.Errorf("%s: %v", test.format, err)
			continue
		}
		for _, id := range test.accepted {
			if !accepts(id) {
				t.Errorf("%s refuses %q", test.format, id)
			}
		}
		for _, id := range test.refused {
			if accepts(id) {
				t.Errorf("%s accepts %q", test.format, id)
			}
		}
	}
}

func TestDefaultDocumentIDFormatByHand(t *testing.T) {
	expr := regexp.MustCompile(`\A(?:` + defaultDocumentIDFormat + `)\z`)
	accepted := 0
	compare := func(id string) {
		got := matchesDefaultIDFormat(id)
		if got != expr.MatchString(id) {
			t.Fatalf("%q: got %v", id, got)
		}
		if got {
			accepted++
		}
	}
	for length := range 260 {
		compare(strings.Repeat("a", length))
	}
	for r := range rune(0x3000) {
		for _, id := range []string{string(r), "a" + string(r), string(r) + "a", "a" + string(r) + "a"} {
			compare(id)
		}
	}
	for c := range 256 {
		compare(string([]byte{byte(c)}))
		compare(string([]byte{'a', byte(c), 'z'}))
		compare(strings.Repeat("a", 127) + string([]byte{byte(c)}))
	}
	random := rand.New(rand.NewPCG(1, 2))
	const alphabet = "aZ09_~-.%/ \n:"
	for range 50_000 {
		id := make([]byte, random.IntN(6))
		for i := range id {
			id[i] = alphabet[random.IntN(len(alphabet))]
		}
		compare(string(id))
	}
	if accepted < 128 {
		t.Errorf("only %d accepted", accepted)
	}
}

// Parentheses that only close together with the anchors' own would undo them.
func TestDocumentIDFormatCannotEscapeItsAnchors(t *testing.T) {
	if accepts, err := newIDFormat("[0-9]+)|(?:x"); err == nil {
		t.Errorf("no error, and it accepts 1../../etc: %v", accepts("1../../etc"))
	}
}
