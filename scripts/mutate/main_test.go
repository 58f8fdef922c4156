package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The list ages with the code: what a mutant replaces must still be there.
func TestMutantsApply(t *testing.T) {
	names := make(map[string]bool)
	for _, m := range mutants {
		if names[m.name] {
			t.Errorf("%s: the name is taken", m.name)
		}
		names[m.name] = true
		source, err := os.ReadFile(filepath.Join("..", "..", m.file))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(source), m.from); n != 1 || m.from == m.to {
			t.Errorf("%s: %q stands %d times in %s, not once", m.name, m.from, n, m.file)
		}
	}
}
