// Checks what web/ is for others: that npm can pack it, that the package holds what it should, that Node.js and
// TypeScript find their way into it, and that it is small.
import { execFileSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, dirname } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { transformSync } from "esbuild";

const MOST = 6 * 1024; // bytes, minified

const here = dirname(fileURLToPath(import.meta.url));
const web = join(here, "..", "..", "web");
const folder = mkdtempSync(join(tmpdir(), "viewer-session-package-"));
const failures = [];
const want = (what, ok) => ok || failures.push(what);
const npm = (cwd, ...args) => execFileSync("npm", args, { cwd, encoding: "utf8", shell: process.platform === "win32" });

try {
	const [{ filename, files }] = JSON.parse(npm(web, "pack", "--json", "--pack-destination", folder));
	const names = files.map((file) => file.path).sort().join(" ");
	want(`the package holds ${names}`, names === "LICENSE package.json viewer-session.d.ts viewer-session.js");

	// As others install it.
	writeFileSync(join(folder, "package.json"), JSON.stringify({ private: true, type: "module" }));
	npm(folder, "install", "--offline", "--no-audit", "--no-fund", "--silent", `./${filename}`);
	const installed = join(folder, "node_modules", "viewer-session");
	const manifest = JSON.parse(readFileSync(join(installed, "package.json"), "utf8"));
	want("the license is another one", manifest.license === "Apache-2.0" && readFileSync(join(installed, "LICENSE"), "utf8") === readFileSync(join(web, "..", "LICENSE"), "utf8"));

	writeFileSync(join(folder, "use.mjs"), `export * from "viewer-session";`);
	const exported = Object.keys(await import(pathToFileURL(join(folder, "use.mjs")).href)).sort().join(" ");
	want(`it exports ${exported}`, exported === "ViewerSessionError fetchSession loadViewer supplySessions");

	cpSync(join(here, "types.ts"), join(folder, "types.ts"));
	const tsc = join(here, "node_modules", "typescript", "bin", "tsc");
	for (const [module, resolution] of [["esnext", "bundler"], ["nodenext", "nodenext"]]) {
		const options = ["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--target", "es2022", "--lib", "es2022,dom", "--types", ""];
		try {
			execFileSync(process.execPath, [tsc, ...options, "--module", module, "--moduleResolution", resolution, "types.ts"], { cwd: folder, encoding: "utf8" });
		} catch (error) {
			want(`TypeScript says (${resolution}):\n${error.stdout}`, false);
		}
	}

	const { code } = transformSync(readFileSync(join(web, "viewer-session.js"), "utf8"), { minify: true, treeShaking: true, format: "esm", target: "es2022", legalComments: "none" });
	console.log(`viewer-session.js: ${code.length} bytes minified`);
	want(`it has ${code.length} bytes minified, more than ${MOST}`, code.length <= MOST);
} finally {
	rmSync(folder, { recursive: true });
}
if (failures.length > 0) {
	console.error(failures.join("\n"));
	process.exit(1);
}
