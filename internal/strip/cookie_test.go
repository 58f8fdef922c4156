package strip

import (
	"maps"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/cookietest"
)

// The models find what they are to look for, so that a test with them can fail.
func TestCookieParserModels(t *testing.T) {
	for line, want := range map[string]string{
		"vs=EVIL": "Latin-1 white space", "a=1; vs=EVIL": "Latin-1 white space", `a="1"vs=EVIL`: "Mojolicious", `\vs=EVIL`: "WebOb", "[vs=EVIL": "WebOb",
		`x]vs=EVIL`: "WebOb", `a=x"vs=EVIL`: "WebOb", "%u0076s=EVIL": "Perl's CGI", "%76s=EVIL": "Perl's CGI", "a=1,vs=EVIL": "Mojolicious",
		"a=1 vs=EVIL": "Python's SimpleCookie", "\x85vs=EVIL": "Latin-1 white space", "\xe2\x80\x83vs=EVIL": "Perl's CGI",
		"vs[x]=EVIL": "PHP", "%76s[]=EVIL": "older PHP", "VS=EVIL": "Latin-1 white space", `"v\s"=EVIL`: "Servlet, RFC 2109", "a=x[vs=EVIL": "WebOb", "a=Mon, 27-Nov-2026 10:00:00 GMTvs=EVIL": "WebOb", `a="1; b="vs=EVIL"`: "Mojolicious",
		"a=vs": "", "teams=red vs blue; x=1": "", "list=a,vs,b": "", "utf=caf\xc3\xa9vs": "", "envs=1": "", "a=vs=1": "", "a=/x?vs=1": "",
	} {
		if got := cookietest.Finds("vs", []string{line}); got != want {
			t.Errorf("%q: %q finds it, want %q", line, got, want)
		}
	}
}

var testCookieNames = []string{"vs", "my_vs", "__Host-viewer", "v", "a.b"}

// Names and separators at random: whatever is left, no family finds ours in it,
// and it is left alone the second time.
func TestNoParserFindsOurCookie(t *testing.T) {
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any will do
	random := rand.New(rand.NewPCG(seed, 0))
	for _, name := range testCookieNames {
		encoded := strings.NewReplacer("v", "%76", "_", "%5f", "s", "%u0073").Replace(name)
		pieces := []string{
			name, name, name, name + "=EVIL", name + "=EVIL", strings.ToUpper(name), encoded, strings.Replace(name, "_", ".", 1), strings.Replace(name, "_", " ", 1), name + "[x]", name + "[", `"` + name[:1] + `\` + name[1:] + `"`,
			"=", "=", "=", "EVIL", ";", ";", "; ", ", ", ",", " ", "\t", `"`, `"`, `\`, `'`, "[", "]", "{", "}", "(", ")", "<", ">", "@", ":", "/", "?", "|", "&", "+", "%20", "%3D", "%3B", "%00", "%25", "%2576", "%",
			"a", "a=1", "keep=1", "a=Mon, 27-Nov-2026 10:00:00 GMT", `b="` + name + `=EVIL"`, `a="1`, `a=\`, `q="x y"`, "\x80", "\x85", "\xa0", "\xff", "\xc2\xa0", "\xe2\x80\x83", "\xef\xbb\xbf", "$Version=1", "$Path", "-", "_", ".", "x",
		}
		text := func() string {
			var b strings.Builder
			for range random.IntN(9) {
				b.WriteString(pieces[random.IntN(len(pieces))])
			}
			return b.String()
		}
		found := make(map[string]int)
		for range 8_000 {
			lines := []string{text()}
			if random.IntN(2) == 0 {
				lines = append(lines, text())
			}
			before := cookietest.Finds(name, lines)
			if before != "" {
				found[before]++
			}
			left := stripped(name, slices.Clone(lines)...)
			if family := cookietest.Finds(name, left); family != "" {
				t.Fatalf("seed %d: %s finds %s in %q, left of %q", seed, family, name, left, lines)
			}
			if again := stripped(name, slices.Clone(left)...); !reflect.DeepEqual(again, left) {
				t.Fatalf("seed %d: %q becomes %q", seed, left, again)
			}
		}
		if len(found) < 5 {
			t.Errorf("%s: only %v found it before", name, found)
		}
	}
}

// No honest cookie is changed, unless NAME= occurs in it: neither alone nor
// among others.
func TestHonestCookiesStayAsTheyAre(t *testing.T) {
	lines := append([]string{strings.Join(cookietest.Honest, "; "), strings.Join(cookietest.Honest, ";")}, cookietest.Honest...)
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		random.Shuffle(len(cookietest.Honest), func(i, j int) {
			cookietest.Honest[i], cookietest.Honest[j] = cookietest.Honest[j], cookietest.Honest[i]
		})
		lines = append(lines, strings.Join(cookietest.Honest[:1+random.IntN(8)], "; "))
	}
	for _, name := range []string{"vs", "my_vs", "__Host-viewer", "viewer_session"} {
		for _, line := range lines {
			if got := stripped(name, line); len(got) != 1 || got[0] != line {
				t.Errorf("%s: %q becomes %q", name, line, got)
			}
			// On lines of their own, ours takes nothing with it.
			if got := stripped(name, line, name+"=EVIL"); len(got) != 1 || got[0] != line {
				t.Errorf("%s, ours beside: %q becomes %q", name, line, got)
			}
		}
	}
}

// runs are what lines can be full of.
var runs = []string{
	" ", "\t", "\x80", "\xff", "\u00a0", "+", `\`, `"`, "%", "%2", "%25", "25", "%u", "%u0020", "%20", "%00", "vs", "vs ", "vs\t", "vs\x80", `vs\`, `vs"`, "v", "V", `v\`, "v%25", "vs%25", "v25",
	";", "; ", "vs;", ",vs", "[", "]vs[", "[vs", "=", "a=", "a=[", "=vs", "a=1; ", "vs+", "%25vs ", "a=vs; ", "a=vs=",
}

// Whatever a line is full of, 16 times as much of it takes about 16 times as
// long, and not 256 times. A busy machine makes one measurement look worse than
// it is, but not each of many.
func TestLookForCookiesIsLinear(t *testing.T) {
	took := func(line string) time.Duration {
		start := time.Now()
		MayHoldCookie(line, "vs")
		rebuildCookies(line, "vs")
		return time.Since(start)
	}
	for _, run := range runs {
		for _, prefix := range []string{"", "a=", "vs", "%25"} {
			line := prefix + strings.Repeat(run, 32<<10/len(run))
			short, long := time.Hour, time.Hour
			for attempt := 0; ; attempt++ {
				short, long = min(short, took(line[:len(line)/16])), min(long, took(line))
				if long < 64*short {
					break
				}
				if attempt == 50 {
					t.Fatalf("%q behind %q: %s for 2 KiB, %s for 32 KiB", run, prefix, short, long)
				}
			}
		}
	}
}

func TestLookForCookiesAllocatesNothing(t *testing.T) {
	header := http.Header{"Cookie": {strings.Join(cookietest.Honest, "; ")}}
	if got := testing.AllocsPerRun(100, func() { stripCookie(header, "viewer_session") }); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkLookForCookies(b *testing.B) {
	lines := map[string]string{"1 KiB, honest": strings.Join(cookietest.Honest, "; ")[:1<<10]}
	for _, run := range []string{" ", "\x80", "vs\x80", "%25", "vs"} {
		lines[strconv.Quote(run)+", 14 KiB"] = strings.Repeat(run, 14<<10/len(run))
	}
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				if MayHoldCookie(lines[name], "vs") {
					rebuildCookies(lines[name], "vs")
				}
			}
		})
	}
}

func FuzzLookForCookies(f *testing.F) {
	for _, run := range runs {
		f.Add(run, "a=1; ", "; vs=EVIL", uint16(1000))
	}
	f.Fuzz(func(t *testing.T, run, before, after string, times uint16) {
		if len(run) > 64 {
			return
		}
		line := before + strings.Repeat(run, int(times)) + after
		start := time.Now()
		left := stripped("vs", line)
		if took := time.Since(start); took > time.Second {
			t.Errorf("%d bytes take %s", len(line), took)
		}
		for _, line := range left {
			if MayHoldCookie(line, "vs") && rebuildCookies(line, "vs") != line {
				t.Errorf("%.100q is left of %.100q", line, line)
			}
		}
	})
}

// stripped returns the Cookie lines that are left.
func stripped(name string, lines ...string) []string {
	header := http.Header{"Cookie": lines}
	stripCookie(header, name)
	return header["Cookie"]
}

func TestStripCookie(t *testing.T) {
	for _, test := range []struct{ name, lines, want string }{ // lines are separated by "|"
		// Plain.
		{"alone", "viewer_session=evil", ""},
		{"empty value", "viewer_session=", ""},
		{"first", "viewer_session=evil; a=1", "a=1"},
		{"middle", "a=1; viewer_session=evil; b=2", "a=1; b=2"},
		{"last", "a=1; viewer_session=evil", "a=1"},
		{"no blanks", "a=1;viewer_session=evil;b=2", "a=1; b=2"},
		{"more blanks", "a=1;  \tviewer_session=evil ; b=2", "a=1; b=2"},
		{"blanks around the name", "a=1; viewer_session =evil", "a=1"},
		{"tab around the name", "a=1; viewer_session\t= evil", "a=1"},
		{"blanks in front", "  viewer_session=evil; a=1", "a=1"},
		{"value with equals signs", "viewer_session=a=b==; c=1", "c=1"},
		{"quoted value", `viewer_session="evil"; a=1`, "a=1"},
		{"quoted value with a semicolon", `viewer_session="ev;il"; a=1`, "a=1"},
		{"inside somebody's quotes", `a="x; viewer_session=evil"; b=2`, "b=2"},

		// Duplicates and lines.
		{"twice", "viewer_session=evil; viewer_session=evil", ""},
		{"twice around another", "viewer_session=evil; a=1; viewer_session=evil", "a=1"},
		{"second line", "a=1|viewer_session=evil", "a=1"},
		{"first line", "viewer_session=evil|a=1", "a=1"},
		{"both lines", "viewer_session=evil|viewer_session=evil", ""},
		{"both lines among others", "a=1; viewer_session=evil|viewer_session=evil; b=2", "a=1|b=2"},
		{"three lines", "a=1|viewer_session=evil|b=2", "a=1|b=2"},

		// Malformed pairs, which Request.Cookies does not show.
		{"no equals sign", "viewer_session", ""},
		{"no equals sign among others", "a=1; viewer_session; b=2", "a=1; b=2"},
		{"comma behind the name", "viewer_session,=evil; a=1", "viewer_session,=evil; a=1"},
		{"quoted name", `"viewer_session"=evil; a=1`, "a=1"},
		{"quote in front", `"viewer_session=evil; a=1`, "a=1"},
		{"quoted pair", `"viewer_session=evil"; a=1`, "a=1"},
		{"control character in the value", "viewer_session=e\x01vil; a=1", "a=1"},
		{"empty pairs", ";; viewer_session=evil ;;a=1", "a=1"},
		{"blank in the value", "viewer_session=e vil; a=1", "a=1"},
		{"escaped twice", "%2576iewer_session=evil; a=1", "a=1"},
		{"escaped three times", "viewer%25255Fsession=evil; a=1", "a=1"},
		{"backslash in a quoted name", `"viewer\_session"=evil; a=1`, "a=1"},
		{"backslashes in a quoted name", `a=1; "v\\\iewer_sessio\n"=evil`, "a=1"},
		{"backslash in the value", `viewer_session=e\vil; a=1`, "a=1"},
		{"not ASCII in the value", "viewer_session=\xff; a=1", "a=1"},
		{"NUL behind the name", "viewer_session\x00x=evil; a=1", "a=1"},
		{"vertical tab in front", "\vviewer_session=evil; a=1", "a=1"},
		{"form feed in front", "a=1;\fviewer_session=evil", "a=1"},

		// Commas and white space end a pair for some parsers.
		{"comma in front", "a=1,viewer_session=evil", ""},
		{"comma and blank in front", "a=1, viewer_session=evil; b=2", "b=2"},
		{"comma before anything", ",viewer_session=evil; b=2", "b=2"},
		{"blank in front of ours", "a=1 viewer_session=evil; b=2", "b=2"},
		{"tab in front of ours", "a=1\tviewer_session=evil; b=2", "b=2"},
		{"quoted behind a comma", `a=1,"viewer_session"=evil; b=2`, "b=2"},
		{"malformed behind a comma", "a=1,viewer_session; b=2", "a=1,viewer_session; b=2"},
		{"PHP's spelling behind a comma", "a=1, viewer.session=evil; b=2", "b=2"},

		// PHP reads these as viewer_session.
		{"dot", "viewer.session=evil; a=1", "a=1"},
		{"blank", "viewer session=evil; a=1", "a=1"},
		{"bracket", "viewer[session=evil; a=1", "a=1"},
		{"member", "viewer_session[x]=evil; a=1", "a=1"},
		{"members", "viewer_session[]=a; viewer_session[0][b]=c; a=1", "a=1"},
		{"member of dot", "viewer.session[x]=evil; a=1", "a=1"},
		{"dot on another line", "a=1|viewer.session=evil", "a=1"},

		// Percent escapes, which older PHP decodes in names.
		{"escaped letter", "%76iewer_session=evil; a=1", "a=1"},
		{"escaped underscore", "viewer%5fsession=evil; a=1", "a=1"},
		{"escaped dot", "viewer%2Esession=evil; a=1", "a=1"},
		{"escaped blank", "viewer%20session=evil; a=1", "a=1"},
		{"plus", "viewer+session=evil; a=1", "a=1"},
		{"escaped bracket", "viewer_session%5Bx%5D=evil; a=1", "a=1"},
		{"all escaped", "%76%69%65%77%65%72%5F%73%65%73%73%69%6F%6E=evil; a=1", "a=1"},
		{"escaped NUL behind the name", "viewer_session%00=evil; a=1", "a=1"},
		{"escaped equals sign", "viewer_session%3Devil; a=1", "a=1"},

		// Case.
		{"capitals", "VIEWER_SESSION=evil; a=1", "a=1"},
		{"mixed", "Viewer_Session=evil; a=1", "a=1"},
		{"escaped capital", "%56iewer_session=evil; a=1", "a=1"},

		// Not ours.
		{"behind a letter", "aviewer_session=mine; b=x y", "aviewer_session=mine; b=x y"},
		{"list", "a=1,viewer_session,b=2; c=x y", "a=1,viewer_session,b=2; c=x y"},
		{"words", "a=red viewer_session blue; c=1", "a=red viewer_session blue; c=1"},
		{"Latin-1", "a=caf\xe9viewer_session; c=1", "a=caf\xe9viewer_session; c=1"},
		{"longer", "viewer_sessions=mine", "viewer_sessions=mine"},
		{"longer in front", "my_viewer_session=mine", "my_viewer_session=mine"},
		{"shorter", "viewer_sessio=mine", "viewer_sessio=mine"},
		{"hyphen", "viewer-session=mine", "viewer-session=mine"},
		{"host prefix", "__Host-viewer_session=mine", "__Host-viewer_session=mine"},
		{"value", "a=viewer_session", "a=viewer_session"},
		{"value with our pair", "a=viewer_session=mine", "a=viewer_session=mine"},
		{"quoted value with our name", `a="viewer_session=mine"; b=1`, "b=1"},
		{"URL in a value", "back=/viewer_session?viewer_session=x", "back=/viewer_session?viewer_session=x"},
		{"nameless", "=mine; a=1", "=mine; a=1"},
		{"nothing", "", ""},
		{"dollar", "$Version=1; a=1; $Path=/", "$Version=1; a=1; $Path=/"},
	} {
		t.Run(test.name, func(t *testing.T) {
			lines := strings.Split(test.lines, "|")
			before := strings.Join(lines, "|")
			left := stripped("viewer_session", lines...)
			if got := strings.Join(left, "|"); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if strings.Join(lines, "|") != before {
				t.Errorf("the caller's lines are changed in place: %q", lines)
			}
			if found := whoReads("viewer_session", left); found != "" {
				t.Errorf("%s still reads it in %q", found, left)
			}
		})
	}
}

// Lines that do not hold our cookie stay as they are, byte for byte. Of the
// others, what RFC 6265 knows stays.
func TestStripCookieKeepsOtherCookiesAsTheyAre(t *testing.T) {
	wellFormed := []string{"a=1", "b=", `e="quoted"`, "f=x=y==", "g=%76iewer_session", "viewer_session_id=7", "Viewer-Session=8", "a=1", "__Secure-o=p", "t.u=v", "r=/doc?viewer_session=1", `s={"a":1}`[:2] + "(1)"}
	malformed := []string{"c", "=d", "h=a b", "i=1,2,3", "k=\xff\xfe", "m=\u00fc", `n="a\"b"`, "q[r]=s", `j={"a":[1]}`}
	others := append(append([]string(nil), wellFormed...), malformed...)
	for i := range others {
		for _, evil := range []string{"viewer_session=evil", "viewer.session=evil", "viewer_session", `"viewer_session"=e`, "viewer%5Fsession[]=x"} {
			pairs := append(append(append([]string(nil), others[:i]...), " "+evil), others[i:]...)
			got := strings.Join(stripped("viewer_session", strings.Join(pairs, "; ")), "|")
			if want := strings.Join(wellFormed, "; "); got != want {
				t.Fatalf("%q at %d:\ngot  %q\nwant %q", evil, i, got, want)
			}
			// On a line of its own it takes nothing with it.
			calm := strings.ReplaceAll(strings.Join(others, "; "), "viewer_session=1", "")
			if got := stripped("viewer_session", calm, evil); len(got) != 1 || got[0] != calm {
				t.Fatalf("%q on a line of its own: got %q", evil, got)
			}
		}
	}
	untouched := []string{" a=1 ;;  b ; ", "", ";", strings.ReplaceAll(strings.Join(others, ";"), "viewer_session=1", "")}
	if got := stripped("viewer_session", append([]string(nil), untouched...)...); !reflect.DeepEqual(got, untouched) {
		t.Errorf("got %q, want %q", got, untouched)
	}
}

func TestStripCookieWithoutCookies(t *testing.T) {
	header := http.Header{"Accept": {"a"}}
	stripCookie(header, "viewer_session")
	if want := (http.Header{"Accept": {"a"}}); !reflect.DeepEqual(header, want) {
		t.Errorf("got %v", header)
	}
	if left := stripped("viewer_session", "viewer_session=evil", "viewer.session"); left != nil {
		t.Errorf("got %q", left)
	}
}

func TestStripCookieOfOtherNames(t *testing.T) {
	for _, test := range []struct{ name, line, want string }{
		{"viewer.session", "viewer.session=evil; viewer_session=evil; VIEWER session=evil; a=1", "a=1"},
		{"__Host-viewer", "__Host-viewer=evil; ..Host-viewer=evil; __host-VIEWER[x]=evil; viewer=1", "viewer=1"},
		{"a", "a=evil; A=evil; a[]=evil; ab=1; b=a", "ab=1; b=a"},
		{"-", "-=evil; --=1; _=2", "--=1; _=2"},
		{".a.", ".a.=evil; _A_[x]=evil; [a =evil; a=1", "a=1"},
	} {
		if got := strings.Join(stripped(test.name, test.line), "|"); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// PHP up to 7.4.10 decodes a cookie's name and skips the blanks in front of it
// after that.
func TestStripCookieBehindAnEscapedBlank(t *testing.T) {
	for _, line := range []string{"%20viewer_session=evil", "+viewer_session=evil", "%20%20+viewer.session=evil", " %20viewer_session[x]=evil", "%09viewer_session=evil", "%22viewer_session%22=evil"} {
		if left := stripped("viewer_session", line+"; a=1"); strings.Join(left, "|") != "a=1" {
			t.Errorf("%s: %q is left", line, left)
		}
	}
}

// whoReads returns the first parser that finds a cookie of this name in the
// lines, or nothing.
func whoReads(name string, lines []string) string {
	r := &http.Request{Header: http.Header{"Cookie": lines}}
	for _, cookie := range r.Cookies() {
		if cookie.Name == name {
			return "net/http"
		}
	}
	folded := cookietest.PHPName(name)
	for _, line := range lines {
		// Lenient: commas and white space end a pair too, quotes do not count.
		for _, pair := range strings.FieldsFunc(line, func(c rune) bool { return strings.ContainsRune(";, \t\r\n\v\f", c) }) {
			key, _, ok := strings.Cut(strings.Trim(pair, `"`), "=")
			if !ok {
				continue // nothing that a client could choose
			}
			if strings.EqualFold(cookietest.PHPName(strings.Trim(key, `"`)), folded) {
				return "a lenient parser"
			}
			if strings.EqualFold(cookietest.PHPName(cookietest.PercentDecode(strings.Trim(key, `"`))), folded) {
				return "a lenient parser that unescapes"
			}
		}
		// PHP: semicolons only, white space in front skipped, names mangled. Up
		// to 7.4.10 it decodes names and skips blanks once more after that.
		for pair := range strings.SplitSeq(line, ";") {
			key, _, _ := strings.Cut(strings.TrimLeft(pair, " \t\r\n\v\f"), "=")
			if cookietest.PHPName(key) == folded {
				return "PHP"
			}
			if cookietest.PHPName(strings.TrimLeft(cookietest.PercentDecode(strings.ReplaceAll(key, "+", " ")), " ")) == folded {
				return "older PHP"
			}
		}
	}
	return ""
}

// The parsers of the tests would find what they are to look for.
func TestWhoReads(t *testing.T) {
	for line, want := range map[string]string{
		"viewer_session=a":               "net/http",
		"a=1, viewer_session=a":          "a lenient parser",
		`"viewer_session=a"`:             "a lenient parser",
		"a=1 viewer.session=":            "a lenient parser",
		"a=1 viewer.session":             "",
		"VIEWER_SESSION=a":               "a lenient parser",
		"viewer_session[x]=a":            "a lenient parser",
		"viewer%5fsession=a":             "a lenient parser that unescapes",
		"viewer session=a":               "PHP",
		"viewer_session\x00b=a":          "a lenient parser",
		"%20+viewer_session=a":           "older PHP",
		"viewer+session=a":               "older PHP",
		"viewer%20session=a":             "a lenient parser that unescapes",
		"a=viewer_session; b=1":          "",
		"viewer_sessions=1; viewer=1":    "",
		"viewer-session=1; =; ; ,,, []=": "",
	} {
		if got := whoReads("viewer_session", []string{line}); got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
}

// Random texts of the pieces that matter go further than what a short run of
// the fuzzer finds.
func TestStripCookieOfRandomPieces(t *testing.T) {
	pieces := []string{
		"viewer_session", "viewer_session", "viewer", "session", "VIEWER", "_", ".", " ", "[", "]", "=", "=", ";", ";", ",", "\t", "\v", "\x00", `"`, "'",
		"%5f", "%5B", "%20", "%00", "%", "+", "%76", "iewer", "v", "a", "1", "\xff",
	}
	random := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		var b strings.Builder
		for range random.IntN(8) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		return b.String()
	}
	removed := 0
	for range 20_000 {
		lines := []string{text(), text()}
		left := stripped("viewer_session", append([]string(nil), lines...)...)
		if found := whoReads("viewer_session", left); found != "" {
			t.Fatalf("%s finds it in %q, left of %q", found, left, lines)
		}
		if whoReads("viewer_session", lines) != "" {
			removed++
		}
		if again := stripped("viewer_session", append([]string(nil), left...)...); !reflect.DeepEqual(again, left) {
			t.Fatalf("%q becomes %q", left, again)
		}
	}
	if removed < 1_000 {
		t.Errorf("only %d texts held the cookie", removed)
	}
}

func FuzzStripCookie(f *testing.F) {
	for _, seed := range []string{
		"viewer_session=evil", "a=1; viewer_session=evil; b=2", "a=1,viewer_session=evil", `"viewer_session"=evil`, "viewer.session=a",
		"viewer session[=a", "viewer_session[x]=a", "%76iewer%5fsession%00=a", "VIEWER+SESSION=a", "viewer_session", "a=1 viewer_session", ";;viewer_session\t=\n",
		`a="x; viewer_session=y"`, "viewer_session%3D", "=viewer_session", "a=1", "", "viewer%viewer_session=%", "viewer_session ;viewer_session,",
	} {
		f.Add(seed, "a=1", "viewer_session")
		f.Add("b=2; viewer_session=evil", seed, "viewer.session")
	}
	f.Fuzz(func(t *testing.T, first, second, name string) {
		if strings.Trim(name, "._-") == "" || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
			return // refused when the config loads
		}
		left := stripped(name, first, second)
		if found := whoReads(name, left); found != "" {
			t.Fatalf("%s finds %s in %q, left of %q and %q", found, name, left, first, second)
		}
		again := stripped(name, append([]string(nil), left...)...)
		if !reflect.DeepEqual(again, left) {
			t.Fatalf("%q becomes %q", left, again)
		}
		// Nothing appears that was not there, and nothing changes its place.
		rest := first + "\x00" + second
		for _, line := range left {
			for pair := range strings.SplitSeq(line, ";") {
				at := strings.Index(rest, pair)
				if at < 0 {
					t.Fatalf("%q in %q is none of %q and %q", pair, left, first, second)
				}
				rest = rest[at+len(pair):]
			}
		}
	})
}
