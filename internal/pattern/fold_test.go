package pattern

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// foldOrbit calls f with every rune that any Unicode case mapping relates to r.
func foldOrbit(r rune, f func(rune)) {
	f(r)
	for other := unicode.SimpleFold(r); other != r; other = unicode.SimpleFold(other) {
		f(other)
	}
	for _, other := range [...]rune{unicode.ToLower(r), unicode.ToUpper(r), unicode.ToTitle(r)} {
		f(other)
	}
}

// Folding more than Caddy's path matcher does would mint for a path that a
// matcher in front of forward_auth had not matched; folding less would leave
// pages without a token.
func TestLiteralsFoldAsStringsToLowerForEveryRune(t *testing.T) {
	failed := 0
	for r := rune(0); r <= unicode.MaxRune && failed < 10; r++ {
		if !utf8.ValidRune(r) {
			continue
		}
		lower := strings.ToLower(string(r))
		foldOrbit(r, func(other rune) {
			text := string(other)
			want := strings.ToLower(text) == lower
			tail, ok := cutPrefixFold(text, lower)
			if got := ok && tail == ""; got != want {
				failed++
				t.Errorf("cutPrefixFold: pattern %U, path %U: got %v, want %v", r, other, got, want)
			}
			tail, ok = cutSuffixFold(text, lower)
			if got := ok && tail == ""; got != want {
				failed++
				t.Errorf("cutSuffixFold: pattern %U, path %U: got %v, want %v", r, other, got, want)
			}
		})
	}
}

// trickyRunes are those whose case mappings are not one to one.
var trickyRunes = []rune("iIİıjJkK\u212asSſßẞσΣςåÅ\u212bǆǅǄµμΜθϑϴωΩ\u2126ᾳᾼᏸᏰꭰᲀвВäÄéE\u0301\ufffd\u00a0 .-x0😀")

func TestLiteralsFoldAsStringsToLowerInStrings(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		runes := make([]rune, random.IntN(4))
		for i := range runes {
			runes[i] = trickyRunes[random.IntN(len(trickyRunes))]
		}
		return string(runes)
	}
	matches := 0
	for range 200_000 {
		s, literal := text(), strings.ToLower(text())
		tail, ok := cutPrefixFold(s, literal)
		if ok {
			matches++
			head, found := strings.CutSuffix(s, tail)
			if !found || strings.ToLower(head) != literal {
				t.Fatalf("cutPrefixFold(%q, %q) leaves %q", s, literal, tail)
			}
		} else if strings.HasPrefix(strings.ToLower(s), literal) {
			t.Fatalf("cutPrefixFold(%q, %q) finds nothing", s, literal)
		}
		tail, ok = cutSuffixFold(s, literal)
		if ok {
			head, found := strings.CutPrefix(s, tail)
			if !found || strings.ToLower(head) != literal {
				t.Fatalf("cutSuffixFold(%q, %q) leaves %q", s, literal, tail)
			}
		} else if strings.HasSuffix(strings.ToLower(s), literal) {
			t.Fatalf("cutSuffixFold(%q, %q) finds nothing", s, literal)
		}
	}
	if matches < 1000 {
		t.Errorf("only %d pairs matched", matches)
	}
}

// caddyMatchesPath asks Caddy's own path matcher.
func caddyMatchesPath(t testing.TB, literal string, u *url.URL) bool {
	t.Helper()
	matcher := caddyhttp.MatchPath{literal}
	if err := matcher.Provision(caddy.Context{Context: context.Background()}); err != nil {
		t.Fatal(err)
	}
	r := (&http.Request{URL: u}).WithContext(context.WithValue(context.Background(), caddy.ReplacerCtxKey, caddy.NewEmptyReplacer()))
	matched, err := matcher.MatchWithError(r)
	if err != nil {
		t.Fatal(err)
	}
	return matched
}

func TestLiteralsMatchAsCaddysPathMatcher(t *testing.T) {
	words := []string{
		"documents", "DOCUMENTS", "Documents", "document", "documents1", "kelvin", "KELVIN", "\u212aelvin", "İstanbul", "istanbul", "ISTANBUL", "ıstanbul",
		"ſession", "session", "SESSION", "straße", "STRASSE", "strasse", "STRAẞE", "ςίγμα", "ΣΊΓΜΑ", "σίγμα", "ångström", "ÅNGSTRÖM", "\u212bngström",
		"ǆ", "ǅ", "Ǆ", "a b", "a.b", "a;b", "é", "e\u0301", "É", "😀", "ffi", "ﬃ",
	}
	var compare func(literal, text string)
	agreed := 0
	compare = func(literal, text string) {
		u := &url.URL{Path: "/" + text}
		want := caddyMatchesPath(t, "/"+literal, u)
		path, ok := CanonicalPath(u)
		got := false
		if ok {
			_, got = mustParsePattern(t, "/"+literal).Match(path)
		}
		if got != want {
			t.Errorf("pattern %q, path %q: got %v, Caddy says %v", literal, text, got, want)
		}
		if got {
			agreed++
		}
	}
	for _, literal := range words {
		for _, text := range words {
			compare(literal, text)
			compare(literal+"/x", text+"/x")
		}
	}
	if agreed < len(words) {
		t.Errorf("only %d matches", agreed)
	}
	// Every letter that has a case, against all that are related to it.
	for r := rune(0x80); r <= unicode.MaxRune; r++ {
		if unicode.SimpleFold(r) != r || unicode.ToLower(r) != r || unicode.ToUpper(r) != r {
			foldOrbit(r, func(other rune) { compare(string(r), string(other)) })
		}
	}
}

// sameInLowerCase is not strings.EqualFold, which folds more.
func sameInLowerCase(a, b string) bool {
	a, b = strings.ToLower(a), strings.ToLower(b)
	return a == b
}

// matchSlowly is match by other means: segments as slices of runes.
func matchSlowly(text, path string) (id string, ok bool) {
	split := func(s string) []string {
		if s = strings.TrimSuffix(strings.TrimPrefix(s, "/"), "/"); s == "" {
			return nil
		}
		return strings.Split(s, "/")
	}
	wanted, parts := split(text), split(path)
	if n := len(wanted); n > 0 && wanted[n-1] == "*" {
		if len(parts) < n {
			return "", false
		}
		wanted, parts = wanted[:n-1], parts[:n-1]
	}
	if len(wanted) != len(parts) {
		return "", false
	}
	for i, want := range wanted {
		if want == "*" {
			continue
		}
		before, after, isID := strings.Cut(want, ":id")
		if !isID {
			if !sameInLowerCase(parts[i], want) {
				return "", false
			}
			continue
		}
		part := []rune(parts[i])
		from, to := len([]rune(before)), len(part)-len([]rune(after))
		if from >= to || !sameInLowerCase(string(part[:from]), before) || !sameInLowerCase(string(part[to:]), after) {
			return "", false
		}
		id = string(part[from:to])
	}
	return id, true
}

func FuzzPattern(f *testing.F) {
	for _, seed := range [][2]string{
		{"/documents/:id", "/documents/abc"},
		{"/documents/:id/", "/Documents/aBc/"},
		{"/d/doc-:id.json", "/d/DOC-7.JSON"},
		{"/d/:id/*", "/d/x/y/z"},
		{"/d/:id/*", "/d/x/"},
		{"/*/*/:id", "/a/b/c"},
		{"/*", "/"},
		{"/", "/"},
		{"/İ\u212aſ/:id", "/i%6b%C5%BF/x"},
		{"/a:id-a", "/a-a"},
		{"/:id.x", "/.x"},
		{"/d/:id", "/d/a%2fb"},
		{"/d/:id", "/d/%2e%2e"},
		{"/d/:id", "/d/a%00"},
		{"/:id", "/0/0"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, text, target string) {
		p, err := Parse(text)
		if err != nil {
			if p != nil || err.Error() == "" {
				t.Fatalf("%q: %v, %v", text, p, err)
			}
			return
		}
		if p.hasID != strings.Contains(text, ":id") {
			t.Fatalf("%q: hasID is %v", text, p.hasID)
		}
		u, err := url.ParseRequestURI(target)
		if err != nil {
			u = &url.URL{Path: target}
		}
		path, ok := CanonicalPath(u)
		if !ok {
			return
		}
		id, ok := p.Match(path)
		if wantID, want := matchSlowly(text, path); ok != want || ok && id != wantID {
			t.Fatalf("%q on %q: got %q, %v, want %q, %v", text, path, id, ok, wantID, want)
		}
		if !ok {
			return
		}
		if p.hasID != (id != "") {
			t.Fatalf("%q on %q: the id is %q", text, path, id)
		}
		if strings.ContainsAny(id, "/\\%") || (id == "." || id == "..") && strings.Contains(text+"/", "/:id/") {
			t.Fatalf("%q on %q: the id is %q", text, path, id)
		}
	})
}
