package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// virtual gives a page a time of its own, in which an hour passes in a moment,
// and a gateway that keeps to its rules in that time: it renews a token about
// halfway between its full life and a quarter of it, and hands out the old one
// meanwhile.
const virtual = `
	const realNow = Date.now();
	const { port1, port2 } = new MessageChannel();
	const waiting = [];
	port1.onmessage = () => waiting.shift()();
	const turn = () => new Promise((done) => (waiting.push(done), port2.postMessage(0))); // all that is due has run
	let time = 0, timers = [], ids = 0, pending = 0;
	window.ticks = 0; // what the monotonic clock is behind, as it is after a sleep
	window.date = 0; // what the page's clock is ahead
	Date.now = () => realNow + time + date;
	performance.now = () => time - ticks;
	window.setTimeout = (f, ms = 0, ...args) => (timers.push({ id: ++ids, at: time + Math.max(1, Math.trunc(ms)), f: () => f(...args) }), ids);
	window.clearTimeout = (id) => (timers = timers.filter((timer) => timer.id !== id));
	const settle = async () => { do { await turn() } while (pending) };
	// pass lets time pass, with its timers.
	window.pass = async (ms) => {
		await settle();
		for (const end = time + ms; ; ) {
			const [next] = timers.filter((timer) => timer.at <= end).sort((a, b) => a.at - b.at);
			time = next ? Math.max(time, next.at) : end;
			if (!next) return;
			timers = timers.filter((timer) => timer !== next);
			next.f();
			await settle();
		}
	};
	// sleep lets time pass without them, as a laptop does.
	window.sleepFor = (ms) => { time += ms; ticks += ms };
	window.minutes = 60_000;

	const part = (value) => btoa(JSON.stringify(value)).replace(/=+$/, "");
	const seconds = () => Math.floor((realNow + time) / 1000);
	let cached, minted = 0;
	const mint = () => (cached = { exp: seconds() + 3600, jwt: "h." + part({ iat: seconds(), exp: seconds() + 3600, jti: ++minted }) + ".s" });
	window.gateway = () => {
		if (!cached || cached.exp - seconds() < 900) mint();
		const { jwt, exp } = cached;
		if (exp - seconds() < 2250) mint();
		return Response.json({ jwt, exp, expires_in: exp - seconds() });
	};
	window.revoke = () => (cached = undefined);
	window.reply = gateway; // what the next fetch gets
	window.calls = [];
	window.fetch = async (url, init) => {
		pending++;
		try {
			calls.push({ at: time, url, rejected: init.headers["X-Viewer-Rejected"] });
			await turn();
			const answer = reply(url, init);
			const { type, status, ok, headers } = answer;
			const text = await answer.text();
			return { type, status, ok, headers, text: async () => text };
		} finally {
			pending--;
		}
	};
	const { exp } = new (class { exp = (jwt) => JSON.parse(atob(jwt.split(".")[1])).exp })();
	window.expired = (jwt) => exp(jwt) <= seconds();
	window.told = [];
	window.start = async (options = {}) => (window.supply = await supplySessions({
		sessionUrl: "/s", onError: (error) => told.push(error.code), onSession: (jwt) => (window.given = jwt), ...options }));
`

// inVirtualTime opens a page with time and a gateway of its own.
func inVirtualTime(t *testing.T) *tab {
	t.Helper()
	p, _ := newPage(t, 0)
	p.must(virtual)
	return p
}

// An open page asks three times in an hour, and never holds an expired token.
func TestSupplyOfADay(t *testing.T) {
	for name, start := range map[string]string{
		"fetched":         `await start()`,
		"from the page":   `await start({ session: (await gateway().json()).jwt })`,
		"its clock -5 h":  `date = -300 * minutes; await start({ session: (await gateway().json()).jwt })`,
		"its clock +5 h":  `date = +300 * minutes; await start({ session: (await gateway().json()).jwt })`,
		"from long since": `const { jwt } = await gateway().json(); sleepFor(44 * minutes); date = -43 * minutes; ticks = 0; await start({ session: jwt })`,
	} {
		t.Run(name, func(t *testing.T) {
			p := inVirtualTime(t)
			var got struct {
				Expired int
				Hours   []int
				Told    string
			}
			text := p.must(start + `;
				const got = { expired: 0, hours: [], told: "" };
				for (let hour = 0; hour < 24; hour++) {
					const before = calls.length;
					for (let i = 0; i < 60; i++) {
						await pass(1 * minutes);
						got.expired += expired(supply.jwt);
					}
					got.hours.push(calls.length - before + (hour === 0 ? before : 0));
				}
				got.told = told.join();
				return JSON.stringify(got)`)
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				t.Fatal(err)
			}
			if got.Expired != 0 || got.Told != "" {
				t.Errorf("%+v", got)
			}
			for hour, calls := range got.Hours {
				if calls > 4 || hour == 0 && calls > 3 {
					t.Errorf("hour %d: %d calls of %v", hour, calls, got.Hours)
				}
			}
		})
	}
}

// Clocks are set, and laptops sleep.
func TestSupplyWhenClocksJump(t *testing.T) {
	for name, jump := range map[string]string{
		"put right, from 5 h behind": `date = -300 * minutes; await start(); await pass(5 * minutes); date = 0`,
		"put right, from 5 h ahead":  `date = +300 * minutes; await start(); await pass(5 * minutes); date = 0`,
		"set back by a day":          `await start(); date = -1440 * minutes`,
		"asleep":                     `await start(); sleepFor(50 * minutes); dispatchEvent(new Event("pageshow"))`,
		"asleep for long":            `await start(); sleepFor(600 * minutes); dispatchEvent(new Event("online"))`,
	} {
		t.Run(name, func(t *testing.T) {
			p := inVirtualTime(t)
			if got := p.must(jump + `;
				let late = 0;
				await pass(1000);
				for (let i = 0; i < 240; i++) {
					late += expired(supply.jwt);
					await pass(1 * minutes);
				}
				return late + " " + (calls.length <= 16 ? "few" : calls.length) + " " + told`); got != "0 few " {
				t.Errorf("minutes with an expired token, calls, errors: %s", got)
			}
		})
	}
}

// A deployment, a firewall's page or a captive portal says no once. That ends
// nothing, and nobody is told.
func TestSupplyLooksAgain(t *testing.T) {
	for name, no := range noes {
		t.Run(name, func(t *testing.T) {
			p := inVirtualTime(t)
			p.must(`await start(); const first = supply.jwt; window.no = () => ` + no + `;
				await pass(29 * minutes);
				let asked = 0;
				reply = () => { asked++; return no() };
				for (let i = 0; i < 10 && asked === 0; i++) await pass(1 * minutes / 2);
				reply = gateway;
				if (!asked) throw new Error("it never asked");
				await pass(2 * minutes);
				await pass(30 * minutes);
				if (supply.jwt === first || expired(supply.jwt)) throw new Error("it has not looked again");
				if (given !== supply.jwt) throw new Error("the new token was not handed on");`)
			if got := p.must(`return told.join()`); got != "" {
				t.Errorf("the page was told %s of a single no", got)
			}
			// It stays that way: told once, asked about once a minute, at once when
			// somebody comes back, and well again when the app is.
			if got := p.must(`
				reply = no;
				let before = calls.length;
				for (let i = 0; i < 60 && !told.length; i++) await pass(1 * minutes);
				before = calls.length;
				await pass(20 * minutes);
				const asked = new Set(calls.slice(before).map((call) => Math.round(call.at / 1000))).size;
				return told.join() + " " + (asked > 14 && asked < 28 ? "about 20" : asked)`); got != codes[name]+" about 20" {
				t.Errorf("told, and asked in 20 minutes: %s", got)
			}
			p.must(`
				for (const before = calls.length; calls.length === before; ) await pass(1000);
				await pass(6000);
				reply = gateway;
				const before = calls.length;
				dispatchEvent(new Event("visibilitychange"));
				await pass(0);
				if (calls.length === before) throw new Error("it does not ask when somebody comes back");
				if (expired(supply.jwt)) throw new Error("it is not well again");`)
		})
	}
}

// A no among passing failures is a single one, and what the page was told of is
// taken back when the app is well again, also if the token is still the same.
func TestSupplyTakesBackWhatItSaid(t *testing.T) {
	p := inVirtualTime(t)
	if got := p.must(`
		const no = () => new Response("", { status: 404 }), down = () => new Response("", { status: 502 });
		await start();
		let answers = [down, down, no, down, no];
		reply = () => (answers.shift() ?? gateway)();
		await pass(40 * minutes);
		return [answers.length, told, expired(supply.jwt)].join()`); got != "0,,false" {
		t.Errorf("answers that were left, told, expired: %s", got)
	}
	if got := p.must(`
		supply.stop();
		reply = gateway;
		const back = [];
		await start({ onSession: (jwt) => back.push(jwt) });
		const first = supply.jwt;
		reply = () => new Response("", { status: 403 });
		while (!told.length) await pass(1 * minutes);
		reply = () => Response.json({ jwt: first, exp: 0, expires_in: 1200 });
		await pass(2 * minutes);
		return [told, back.length, back[0] === first].join()`); got != "refused,1,true" {
		t.Errorf("told, how often it was taken back, with the token: %s", got)
	}
}

var noes = map[string]string{
	"404":         `new Response("", { status: 404 })`,
	"403":         `new Response("", { status: 403 })`,
	"401":         `new Response("", { status: 401 })`,
	"a redirect":  `Object.defineProperty(new Response(""), "type", { value: "opaqueredirect" })`,
	"a page":      `new Response("<!doctype html>page", { headers: { "Content-Type": "text/html" } })`,
	"other words": `Response.json({ error: "no" })`,
}

var codes = map[string]string{"404": "refused", "403": "refused", "401": "login", "a redirect": "login", "a page": "answer", "other words": "answer"}

// However often the SDK, the page and the browser ask: no more calls than the
// gateway asks for.
func TestSupplyInAnErrorStorm(t *testing.T) {
	p := inVirtualTime(t)
	for asked, most := range map[string]int{"30": 21, "120": 6, "7200": 3, "": 130} {
		if got := p.must(fmt.Sprintf(`
			reply = gateway;
			await start();
			reply = () => new Response("", { status: 503, headers: { "Retry-After": %q } });
			const before = calls.length;
			let rejected = 0;
			for (let i = 0; i < 600; i++) {
				const asked = [supply.renew(), supply.replace(0), supply.replace()].map((p) => p.catch(() => rejected++));
				dispatchEvent(new Event("online"));
				dispatchEvent(new Event("visibilitychange"));
				await pass(1000);
			}
			supply.stop();
			const all = calls.length - before;
			return (rejected > 600) + " " + (all >= 2) + " " + (all <= %d ? "few" : all) + " " + told.splice(0)`, asked, most)); got != "true true few unavailable" {
			t.Errorf("Retry-After %s: rejected, asked at all, few, told: %s", asked, got)
		}
	}
}

// A page that is opened while the app restarts, or the API stumbles, opens a
// moment later. One that cannot be opened says so before its user gives up, once.
func TestSupplyTriesToBegin(t *testing.T) {
	for name, test := range map[string]struct{ reply, want string }{
		"well at once":           {`reply = gateway`, "opened, calls 1, seconds 0"},
		"down for a moment":      {`const since = Date.now(); reply = () => (Date.now() - since < 800 ? new Response("", { status: 502 }) : gateway())`, "opened, calls 2, seconds 1"},
		"unreachable at first":   {`reply = () => { reply = gateway; throw new TypeError("Failed to fetch") }`, "opened, calls 2, seconds 1"},
		"asked to wait a little": {`reply = () => { reply = gateway; return new Response("", { status: 503, headers: { "Retry-After": "2" } }) }`, "opened, calls 2, seconds 2"},
		"asked to wait for long": {`reply = () => new Response("", { status: 503, headers: { "Retry-After": "60" } })`, "unavailable, calls 1, seconds 0"},
		"down":                   {`reply = () => new Response("", { status: 502 })`, "unavailable, calls 3, seconds 3"},
		"a no":                   {`reply = () => new Response("", { status: 403 })`, "refused, calls 1, seconds 0"},
	} {
		t.Run(name, func(t *testing.T) {
			p := inVirtualTime(t)
			p.must(`Math.random = () => 0.5`)
			if got := p.must(test.reply + `;
				let done, seconds = 0;
				start().then(() => (done = "opened"), (error) => (done = error.code));
				for (await pass(0); !done && seconds < 60; seconds++) await pass(1000);
				return done + ", calls " + calls.length + ", seconds " + seconds + told`); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
	// Nobody waits for a page that has been left.
	p := inVirtualTime(t)
	if got := p.must(`
		reply = () => new Response("", { status: 502 });
		const end = new AbortController();
		const started = start({ signal: end.signal }).catch((error) => error.name);
		await pass(100);
		end.abort();
		await pass(5000);
		const name = await started;
		await pass(60 * minutes);
		return [name, calls.length, told].join()`); got != "AbortError,1," {
		t.Errorf("the end, calls, told: %s", got)
	}
}

// Whoever says that a token does not work gets another one, as soon as there is
// one, or learns that there is none.
func TestSupplyReplaces(t *testing.T) {
	p := inVirtualTime(t)
	if got := p.must(`
		await start();
		const first = supply.jwt;
		let done = "";
		const replaced = supply.replace().then(() => (done = "replaced"), (error) => (done = error.code));
		reply = () => new Response("", { status: 503, headers: { "Retry-After": "4" } });
		await pass(3000);
		const early = done;
		reply = () => (revoke(), gateway());
		await pass(3000);
		const { rejected } = calls.at(-1);
		return [early, done, supply.jwt !== first, given === supply.jwt, rejected === first.slice(0, first.lastIndexOf(".")), calls.length].join()`); got != ",replaced,true,true,true,3" {
		t.Errorf("too early, done, another, handed on, with the rejected one's name, calls: %s", got)
	}
	// All who ask at once wait for the same, also for the renewal that is on its
	// way, if that brings another token.
	if got := p.must(`
		calls.length = 0;
		revoke();
		const renewal = supply.renew();
		await Promise.all([renewal, supply.replace(), supply.replace()]);
		return calls.length`); got != "1" {
		t.Errorf("%s calls", got)
	}
	if got := p.must(`
		calls.length = 0;
		const renewal = supply.renew();
		reply = () => (reply = () => (revoke(), gateway()), gateway()); // the same one first
		await Promise.all([renewal, supply.replace(), supply.replace()]);
		return calls.map((call) => Boolean(call.rejected)).join()`); got != "false,true" {
		t.Errorf("with a rejected token: %s", got)
	}
	// None to be had in 25 seconds.
	if got := p.must(`
		reply = () => new Response("", { status: 500 });
		let done = "", passed = 0;
		supply.replace().catch((error) => (done = error.code));
		for (; !done; passed++) await pass(1000);
		return done + (passed > 10 && passed < 27) + " " + told`); got != "unavailabletrue unavailable" {
		t.Errorf("what it ends with, in time, and what the page is told: %s", got)
	}
	// And then there is one, for which nobody waits any more.
	if got := p.must(`
		const before = given;
		reply = () => (revoke(), gateway());
		await pass(2 * minutes);
		return given !== before && given === supply.jwt`); got != "true" {
		t.Error("the next token was not handed on")
	}
	if got := p.must(`
		supply.stop();
		calls.length = 0;
		await pass(600 * minutes);
		return calls.length + " " + await supply.renew().catch((error) => error.name)`); got != "0 AbortError" {
		t.Errorf("calls after the end: %s", got)
	}
}

// The same answer again and again comes out of a cache.
func TestSupplyNoticesOldAnswers(t *testing.T) {
	p := inVirtualTime(t)
	if got := p.must(`
		const old = await gateway().text();
		reply = () => new Response(old);
		await start();
		for (let i = 0; i < 60; i++) await pass(1 * minutes);
		return told + " " + new Set(calls.map((call) => call.url)).size / calls.length`); got != "answer 1" {
		t.Errorf("told, and how many addresses a call: %s", got)
	}
	for address, want := range map[string]string{"/s": "/s?_=", "/s?a=b%20c": "/s?a=b%20c&_=", "/s#x": "/s?_=", "/s?a=1#x": "/s?a=1&_="} {
		if got := p.must(`calls.length = 0; reply = gateway; await fetchSession("` + address + `"); return calls[0].url`); !strings.HasPrefix(strings.TrimPrefix(got, "http://"+p.s.gateway), want) {
			t.Errorf("%s asks at %s", address, got)
		}
	}
}
