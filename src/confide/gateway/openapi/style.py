"""The style sheet of the page: the reader's fonts and scheme, one column on a phone, no layout that needs a script."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #55606b; --paper: #fff; --box: #f3f5f7;
  --line: #d5dbe1; --link: #0b57a4; --good: #17663a; --warn: #7a5200; --bad: #a1261d; --post: #17663a; --get: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #a3adb8; --paper: #14181c; --box: #1e242a;
  --line: #39424c; --link: #7db8f5; --good: #7fd6a2; --warn: #e8bf6a; --bad: #ff9d94; --post: #7fd6a2;
  --get: #7db8f5; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; font: 1rem/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
header { max-width: 60rem; padding: 1.5rem 1.5rem 0.5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 0.75rem; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 0.5rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.25rem 0 0.4rem; overflow-wrap: anywhere; }
p { margin: 0.4rem 0; max-width: 45rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: 1rem; background: var(--paper); padding: 0.5rem; z-index: 1; }
.further, .access { color: var(--soft); font-size: 0.92rem; }
.columns { display: grid; grid-template-columns: 20rem minmax(0, 1fr); gap: 1.5rem; padding: 0.5rem 1.5rem 3rem; }
nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow: auto; padding: 0.5rem 0; }
nav { font-size: 0.88rem; }
nav summary { font-weight: 600; cursor: pointer; padding: 0.25rem 0; }
nav h2 { font-size: 0.88rem; color: var(--soft); margin: 0.75rem 0 0.2rem; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav li a { display: block; padding: 0.18rem 0; text-decoration: none; overflow-wrap: anywhere; }
nav li a:hover { text-decoration: underline; }
section { border-top: 1px solid var(--line); padding: 1.25rem 0; }
p code { overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.9em; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: 0.75rem; }
pre { overflow: auto; max-width: 100%; }
details > summary { cursor: pointer; }
main details { margin: 0.4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.75rem 0.35rem 0; }
th, td { border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td { overflow-wrap: break-word; }
td code { overflow-wrap: anywhere; }
td:first-child code { overflow-wrap: normal; }
.method { font-weight: 700; font-size: 0.8em; }
.method.get { color: var(--get); }
.method.post { color: var(--post); }
.effect { font-weight: 600; }
.effect.honoured { color: var(--good); }
.effect.limited, .effect.by_some, .effect.without_effect { color: var(--warn); }
.effect.refused { color: var(--bad); }
@media (max-width: 55rem) {
  .columns { display: block; padding: 0.5rem 1rem 3rem; }
  header { padding: 1rem 1rem 0.5rem; }
  nav { position: static; max-height: none; }
  nav li a { padding: 0.45rem 0; }
  thead { position: absolute; left: -100rem; }
  tr { display: block; padding: 0.5rem 0; border-bottom: 1px solid var(--line); }
  td { display: block; border: 0; padding: 0.1rem 0; }
  td:empty { display: none; }
  td:first-child code { overflow-wrap: anywhere; font-weight: 600; }
  td:not(:first-child)::before { content: attr(data-name) ": "; color: var(--soft); }
}
"""
