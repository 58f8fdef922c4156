// Command mutate breaks the guards of this project one at a time and tells
// which test fails for it. A guard that can be broken without a failing test
// needs one. From the root of the repository:
//
//	go run ./scripts/mutate             # all mutants
//	go run ./scripts/mutate cache jwt   # those whose name holds one of the words
//
// Nothing in the tree is changed: each mutant is an overlay for go test.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const tags = "nobadger,nomysql,nopgx"

func main() {
	// A test that fails for want of what it needs kills every mutant.
	if output, err := exec.Command("bash", "scripts/setup.sh").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %s\n", err, output)
		os.Exit(1)
	}
	survived, broken := 0, 0
	for _, m := range mutants {
		if len(os.Args) > 1 && !slices.ContainsFunc(os.Args[1:], func(word string) bool { return strings.Contains(m.name, word) }) {
			continue
		}
		start := time.Now()
		killers, err := m.run()
		switch {
		case err != nil:
			broken++
			fmt.Printf("BROKEN    %s: %v\n", m.name, err)
		case len(killers) == 0:
			survived++
			fmt.Printf("SURVIVED  %s (%s)\n", m.name, time.Since(start).Round(time.Second))
		default:
			fmt.Printf("killed    %s: %s (%s)\n", m.name, strings.Join(killers, ", "), time.Since(start).Round(time.Second))
		}
	}
	fmt.Printf("%d survived, %d could not be made\n", survived, broken)
	if survived+broken > 0 {
		os.Exit(1)
	}
}

// run returns the names of the top-level tests that fail for the mutant.
func (m mutant) run() ([]string, error) {
	source, err := os.ReadFile(m.file)
	if err != nil {
		return nil, err
	}
	if n := strings.Count(string(source), m.from); n != 1 {
		return nil, fmt.Errorf("%q is found %d times in %s, not once", m.from, n, m.file)
	}
	dir, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	mutated := filepath.Join(dir, "mutated.go")
	if err := os.WriteFile(mutated, []byte(strings.Replace(string(source), m.from, m.to, 1)), 0o600); err != nil { //nolint:gosec // a temporary file of our own
		return nil, err
	}
	original, err := filepath.Abs(m.file)
	if err != nil {
		return nil, err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: mutated}})
	if err != nil {
		return nil, err
	}
	overlayFile := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		return nil, err
	}
	for _, pkg := range m.packages() {
		killers, err := failingTests(overlayFile, "-race="+strconv.FormatBool(m.racy), pkg...)
		if err != nil || len(killers) > 0 {
			return killers, err
		}
	}
	return nil, nil
}

// packages returns the packages whose tests may kill the mutant, with the
// arguments of each. The integration tests take longer, so they only see what the
// others let through.
func (m mutant) packages() (all [][]string) {
	folder := filepath.ToSlash(filepath.Dir(m.file))
	switch folder {
	case "web": // it is served by the gateway
		return [][]string{{"-run=^Test(Supply|OwnDocument)", "-failfast", "./integration"}, {"-run=^TestBrowser", "-failfast", "./integration"}}
	case ".", "internal/secret": // the same as the next, or without tests of its own
	default:
		all = append(all, []string{"./" + folder})
	}
	return append(all, []string{"."}, []string{"./integration"})
}

func failingTests(overlay, race string, args ...string) ([]string, error) {
	args = append([]string{"test", race, "-overlay", overlay, "-tags", tags, "-count=1", "-timeout=4m", "-vet=off"}, args...)
	cmd := exec.Command("go", args...) //nolint:gosec // our own arguments
	output, err := cmd.CombinedOutput()
	if err == nil {
		return nil, nil
	}
	if bytes.Contains(output, []byte("[build failed]")) {
		return nil, fmt.Errorf("it does not build:\n%s", output)
	}
	var killers []string
	lines := bufio.NewScanner(bytes.NewReader(output))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if name, ok := strings.CutPrefix(line, "--- FAIL: "); ok {
			name, _, _ = strings.Cut(name, " ")
			killers = append(killers, name)
		}
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			killers = append(killers, line)
		}
	}
	if len(killers) == 0 {
		return nil, fmt.Errorf("tests failed without saying which: %v\n%s", err, output)
	}
	if len(killers) > 4 {
		killers = append(killers[:4], fmt.Sprintf("and %d more", len(killers)-4))
	}
	return killers, nil
}
