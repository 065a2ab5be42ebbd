"""Topics of the sample text: in town, from the station to the town hall. `lexicon.py` explains the notation."""

STATION = """
title: Am Bahnhof / Eine Reise mit der Bahn / Der Zug hat Verspätung
W der Schaffner -s Schaffner: höflich streng müde
W die Schaffnerin - Schaffnerinnen: höflich streng
W der Lokführer -s Lokführer: erfahren pünktlich
W die Lokführerin - Lokführerinnen: erfahren jung
G der Fahrgast -es Fahrgäste: ungeduldig müde
G die Touristin - Touristinnen: fröhlich neugierig
G der Student -en Studenten: jung müde
T der Zug -es Züge: lang schnell voll
T die Fahrkarte - Fahrkarten: billig gültig teuer
T der Koffer -s Koffer: schwer groß alt
T der Fahrplan -s Fahrpläne: neu alt
T der Sitzplatz -es Sitzplätze: frei bequem
T der Wagen -s Wagen: leer voll
T die Tasche - Taschen: leicht voll schwer
T das Signal -s Signale: rot grün
T die Zeitung - Zeitungen: dick alt
B der Anschluss -es Anschlüsse: schlecht gut
M das Gepäck -s -: schwer leicht
M der Lärm -s -: laut groß
auf der Bahnsteig -s Bahnsteige: lang voll windig
in der Bahnhof -s Bahnhöfe: groß alt laut
in der Wartesaal -s Wartesäle: kalt voll
an der Schalter -s Schalter: leer geschlossen
X die Tür - Türen: offen schwer < Zug Wagen
X das Fenster -s Fenster: offen schmutzig < Zug Wagen
W kontrollieren acc:Fahrkarte,Gepäck m
W öffnen acc:Tür,Fenster m:langsam,schnell
W beachten acc:Signal
W verkaufen dat:G acc:Fahrkarte
W erklären dat:G acc:Fahrplan m:geduldig,freundlich
W ab|stellen acc:Zug,Wagen
W helfen dat:G m:gern,sofort
G warten auf+acc:Zug,Anschluss m:geduldig,lange
G kaufen acc:Fahrkarte,Zeitung
G tragen acc:Koffer,Tasche,Gepäck m
G ein|steigen in+acc:Zug,Wagen m:schnell
G verpassen acc:Zug,Anschluss
G lesen acc:Zeitung,Fahrplan m:lange,genau
G suchen acc:Sitzplatz,Fahrkarte,Wagen
G stellen acc:Koffer,Tasche in+acc:Wagen m:vorsichtig
G vergessen acc:Tasche,Koffer
Zug ab|fahren m:pünktlich,langsam
Zug an|kommen m:pünktlich
Zug halten m:lange
"""

HOSPITAL = """
title: Im Krankenhaus / Ein Besuch beim Arzt / Die Untersuchung
W der Arzt -es Ärzte: erfahren müde geduldig
W die Ärztin - Ärztinnen: erfahren jung geduldig
W der Pfleger -s Pfleger: freundlich müde
W die Pflegerin - Pflegerinnen: freundlich fleißig
G der Patient -en Patienten: krank schwach tapfer
G die Patientin - Patientinnen: krank schwach tapfer
T das Medikament -s Medikamente: stark neu bitter
T die Tablette - Tabletten: klein bitter
T der Verband -es Verbände: fest frisch weiß
B die Wunde - Wunden: tief klein
T das Rezept -s Rezepte: neu gültig
B der Befund -s Befunde: gut genau
B die Untersuchung - Untersuchungen: genau kurz lang
B die Operation - Operationen: schwierig lang
T das Bett -es Betten: weich frei sauber
T die Spritze - Spritzen: dünn klein
M das Fieber -s -: hoch leicht
M der Tee -s -: heiß dünn
M die Geduld - -: groß
in das Krankenhaus -es Krankenhäuser: groß neu modern
in die Praxis - Praxen: klein hell modern
auf die Station - Stationen: ruhig voll
in das Wartezimmer -s Wartezimmer: voll eng hell
X das Ergebnis -ses Ergebnisse: gut genau < Untersuchung Operation
X die Wirkung - Wirkungen: stark schnell < Medikament Tablette Spritze
W untersuchen acc:G,Wunde m
W verschreiben dat:G acc:Medikament,Tablette
W verbinden acc:Wunde m
W wechseln acc:Verband m
W vor|bereiten acc:Operation,Untersuchung,Spritze m
W erklären dat:G acc:Befund,Rezept,Ergebnis m:geduldig,genau
W sich+kümmern um+acc:G m:gut,geduldig
W messen acc:Fieber m
W bringen dat:G acc:Tee,Tablette
W beziehen acc:Bett
W trösten acc:G m:freundlich,geduldig
G ein|nehmen acc:Tablette,Medikament
G sich+erholen von+dat:Operation m:gut,langsam
G danken dat:W m:herzlich
G sich+fürchten vor+dat:Operation,Spritze,Untersuchung m:sehr
G warten auf+acc:Befund,Untersuchung,Arzt,Ärztin m:geduldig,lange
G trinken acc:Tee m:langsam,gern
Wunde heilen m:gut,langsam
Medikament,Tablette wirken m:schnell,gut
"""

LIBRARY = """
title: In der Bibliothek / Bücher und Leser / Ein Fund im Archiv
W der Bibliothekar -s Bibliothekare: ruhig belesen freundlich
W die Bibliothekarin - Bibliothekarinnen: ruhig belesen freundlich
W der Archivar -s Archivare: geduldig alt
G der Leser -s Leser: neugierig treu
G die Leserin - Leserinnen: neugierig treu
G die Historikerin - Historikerinnen: klug bekannt
T das Buch -es Bücher
T der Roman -s Romane: lang spannend berühmt
T die Zeitschrift - Zeitschriften: neu alt
T der Katalog -s Kataloge: dick genau
T das Regal -s Regale: hoch lang voll
T der Ausweis -es Ausweise: gültig neu
T die Handschrift - Handschriften: alt wertvoll selten
T die Urkunde - Urkunden: alt wertvoll echt
T der Brief -es Briefe: lang alt
T die Leiter - Leitern: hoch leicht
M der Staub -s -: fein grau
M die Stille - -: groß tief
in die Bibliothek - Bibliotheken: groß alt berühmt
in der Lesesaal -s Lesesäle: hell still voll
in das Archiv -s Archive: kühl alt
in das Magazin -s Magazine: dunkel kühl
X der Einband -es Einbände: braun kostbar < Buch Roman Handschrift
X das Kapitel -s Kapitel: kurz spannend < Buch Roman
W ordnen acc:Zeitschrift,Katalog,Brief m
W stellen acc:Buch,Roman,Katalog in+acc:Regal m
W suchen acc:Urkunde,Handschrift,Brief
W empfehlen dat:G acc:Roman,Buch,Zeitschrift
W zeigen dat:G acc:Handschrift,Urkunde,Katalog m:gern
W restaurieren acc:Handschrift,Urkunde,Einband m
W holen acc:Leiter,Buch,Brief
W ab|stauben acc:Regal,Buch m
W prüfen acc:Ausweis,Urkunde m
W schließen acc:Lesesaal,Archiv
G leihen acc:Buch,Roman,Zeitschrift
G zurück|geben acc:Buch,Roman
G lesen acc:Roman,Brief,Handschrift,Kapitel m:langsam,gern
G blättern in+dat:Zeitschrift,Katalog,Roman m:langsam
G entdecken acc:Urkunde,Brief,Handschrift
G übersetzen acc:Brief,Urkunde m
G verlieren acc:Ausweis
G sich+interessieren für+acc:Handschrift,Urkunde,Roman m:sehr
"""

CONCERT = """
title: Das Konzert / Die Probe / Musik am Abend
W der Musiker -s Musiker: begabt nervös jung
W die Geigerin - Geigerinnen: begabt berühmt jung
W der Dirigent -en Dirigenten: streng berühmt alt
W die Sängerin - Sängerinnen: berühmt begabt
W der Pianist -en Pianisten: begabt nervös
G der Zuhörer -s Zuhörer: aufmerksam begeistert
G die Zuhörerin - Zuhörerinnen: aufmerksam begeistert
G der Kritiker -s Kritiker: streng bekannt
B das Lied -es Lieder: traurig schön kurz
B das Konzert -s Konzerte: lang wunderbar
T die Geige - Geigen: alt wertvoll
T der Flügel -s Flügel: schwarz groß
B die Sinfonie - Sinfonien: lang berühmt
B die Melodie - Melodien: leise traurig schön
T die Trompete - Trompeten: laut golden
T die Eintrittskarte - Eintrittskarten: teuer billig
B das Stück -es Stücke: schwierig kurz neu
T das Instrument -s Instrumente: alt wertvoll
M der Beifall -s -: lang stark
M die Musik - -: leise laut schön
in der Konzertsaal -s Konzertsäle: groß festlich voll
auf die Bühne - Bühnen: breit hell
in die Oper - Opern: alt berühmt
in der Probenraum -s Probenräume: klein warm
X der Klang -es Klänge: warm hell klar < Geige Flügel Trompete
X der Schluss -es Schlüsse: leise wunderbar < Lied Sinfonie Stück
W spielen acc:Sinfonie,Melodie,Stück m:laut,leise,wunderbar
W üben acc:Stück,Melodie,Lied m:fleißig,lange
W stimmen acc:Geige,Flügel,Instrument m
W singen acc:Lied,Melodie m:leise,laut,gern
W komponieren acc:Lied,Sinfonie,Stück
W auf|treten m:gern,allein
W proben acc:Sinfonie,Stück m:lange,fleißig
W danken dat:G für+acc:Beifall m:herzlich
W aus|packen acc:Geige,Trompete m
G hören acc:Sinfonie,Konzert,Musik m:gern
G besuchen acc:Konzert
G kaufen acc:Eintrittskarte
G loben acc:Geigerin,Pianist,Dirigent,Konzert
G sich+freuen auf+acc:Konzert,Sinfonie m:sehr
G warten auf+acc:Sängerin,Dirigent,Konzert m:geduldig,lange
Musik,Melodie,Trompete,Geige klingen m:schön,leise
"""

MUSEUM = """
title: Im Museum / Eine neue Ausstellung / Die Sammlung
W der Restaurator -s Restauratoren: geduldig erfahren
W die Kuratorin - Kuratorinnen: klug jung bekannt
W der Wächter -s Wächter: müde aufmerksam
W die Malerin - Malerinnen: berühmt jung
G der Besucher -s Besucher: neugierig begeistert
G die Besucherin - Besucherinnen
G der Sammler -s Sammler: reich geduldig
T das Gemälde -s Gemälde: alt berühmt dunkel
T die Skulptur - Skulpturen: schwer modern
B die Ausstellung - Ausstellungen: neu groß erfolgreich
T die Vase - Vasen: kostbar alt dünn
T die Münze - Münzen: golden selten klein
T der Rahmen -s Rahmen: golden breit
T die Vitrine - Vitrinen: gläsern hoch
T das Bild -es Bilder: bunt klein berühmt
T die Maske - Masken: alt fremd
T der Ring -es Ringe: kostbar golden
M das Licht -es -: hell schwach
M das Gold -es -: echt alt
in das Museum -s Museen: modern groß bekannt
in der Keller -s Keller: trocken dunkel
in die Galerie - Galerien: klein hell
an der Eingang -s Eingänge: breit hell
X die Farbe - Farben: dunkel kräftig < Bild Gemälde
X der Wert -es Werte: hoch groß < Münze Vase Gemälde Ring
W restaurieren acc:Gemälde,Vase,Rahmen,Maske m
W eröffnen acc:Ausstellung
W auf|hängen acc:Gemälde,Bild m
W bewachen acc:Vase,Münze,Gemälde,Ring m
W erklären dat:G acc:Bild,Skulptur,Ausstellung m:geduldig,gern
W reinigen acc:Rahmen,Vitrine,Skulptur m
W stellen acc:Vase,Skulptur in+acc:Vitrine m:vorsichtig
W malen acc:Bild m:gern,allein
W beschreiben acc:Maske,Münze,Gemälde m:genau
G betrachten acc:Gemälde,Skulptur,Bild m:lange,aufmerksam
G bewundern acc:Vase,Ring,Gemälde
G besuchen acc:Ausstellung
G fotografieren acc:Skulptur,Maske
G sammeln acc:Münze,Vase,Maske
G schenken dat:W acc:Münze,Bild
G sprechen über+acc:Bild,Ausstellung m:lange,leise
Bild,Gemälde gefallen dat:G m:gut,sehr
"""

LABORATORY = """
title: Im Labor / Ein Versuch / Die Entdeckung
W der Forscher -s Forscher: geduldig neugierig
W die Forscherin - Forscherinnen: geduldig klug bekannt
W der Laborant -en Laboranten: jung genau
W die Chemikerin - Chemikerinnen: klug jung
G der Professor -s Professoren: streng berühmt
G die Professorin - Professorinnen: berühmt klug
G der Student -en Studenten
B der Versuch -s Versuche: lang schwierig einfach
T die Probe - Proben: klein trocken
B die Messung - Messungen: genau falsch
T das Mikroskop -s Mikroskope: stark teuer neu
T der Bericht -s Berichte: kurz lang genau
B die Vermutung - Vermutungen: kühn falsch richtig
T das Gerät -s Geräte: teuer neu modern
T das Reagenzglas -es Reagenzgläser: leer sauber
T die Tabelle - Tabellen: lang genau
B der Fehler -s Fehler: klein grob
T die Lösung - Lösungen: klar giftig
M die Säure - -: stark giftig
M das Wasser -s -: klar heiß
M die Wärme - -: groß gering
in das Labor -s Labore: hell sauber modern
in das Institut -s Institute: bekannt groß
in der Hörsaal -s Hörsäle: voll groß
X die Ursache - Ursachen: einfach unbekannt < Fehler
X der Verlauf -s Verläufe: normal schnell < Versuch Messung
W untersuchen acc:Probe,Lösung m
W wiederholen acc:Versuch,Messung m
W aus|werten acc:Messung,Tabelle,Versuch m
W beobachten acc:Versuch,Lösung m:lange,aufmerksam
W prüfen acc:Vermutung,Gerät,Tabelle m
W schreiben acc:Bericht m
W füllen acc:Säure,Wasser,Lösung in+acc:Reagenzglas m:vorsichtig
W entdecken acc:Fehler,Ursache
W vergleichen acc:Messung,Probe mit+dat:Tabelle m
W erhitzen acc:Lösung,Wasser m
W stellen acc:Mikroskop,Gerät an+acc:Fenster m:vorsichtig
W ein|schalten acc:Gerät,Mikroskop
G lesen acc:Bericht m:aufmerksam,lange
G zweifeln an+dat:Vermutung,Messung m:sehr
G loben acc:Forscher,Forscherin,Bericht
G fragen acc:W nach+dat:Bericht,Messung,Ursache
G sich+interessieren für+acc:Versuch,Lösung m:sehr
Versuch gelingen dat:W m:gut,sofort
"""

STADIUM = """
title: Das Spiel / Ein Sonntag im Stadion / Die neue Saison
W der Spieler -s Spieler: schnell jung stark
W die Spielerin - Spielerinnen: schnell jung stark
W der Trainer -s Trainer: streng ruhig erfahren
W die Trainerin - Trainerinnen: streng ruhig erfahren
G der Zuschauer -s Zuschauer: laut begeistert
G die Zuschauerin - Zuschauerinnen: begeistert fröhlich
G der Reporter -s Reporter: aufmerksam neugierig
T der Ball -es Bälle: rund nass neu
B das Spiel -es Spiele: spannend wichtig hart
T der Pokal -s Pokale: golden groß
B die Mannschaft - Mannschaften: stark jung müde
T das Trikot -s Trikots: rot blau nass
B der Elfmeter -s Elfmeter: umstritten wichtig
B der Angriff -s Angriffe: schnell gefährlich
T die Fahne - Fahnen: bunt groß
B der Gegner -s Gegner: stark schwach
B der Sieg -es Siege: verdient wichtig
M das Training -s -: hart kurz
M der Jubel -s -: groß laut
in das Stadion -s Stadien: voll neu groß
auf der Platz -es Plätze: nass grün
in die Kabine - Kabinen: eng warm
in die Halle - Hallen: kalt groß
X der Anfang -s Anfänge: gut schlecht < Spiel Training
X die Abwehr - Abwehren: stark sicher < Mannschaft Gegner
W schießen acc:Ball m:hart,schnell
W gewinnen acc:Spiel,Pokal m:knapp,verdient
W verlieren acc:Spiel m:knapp
W trainieren acc:Mannschaft m:hart,lange
W besiegen acc:Gegner,Mannschaft m:knapp,verdient
W wechseln acc:Trikot m:schnell
W verwandeln acc:Elfmeter m:sicher
W sich+vor|bereiten auf+acc:Spiel,Gegner m:gut,gründlich
W feiern acc:Sieg m:laut,gemeinsam
W planen acc:Angriff,Training m
G jubeln m:laut,lange
G schwenken acc:Fahne m:begeistert
G beobachten acc:Spiel,Angriff,Trainer m:aufmerksam
G sprechen über+acc:Spiel,Elfmeter,Sieg m:lange,laut
G hoffen auf+acc:Sieg,Pokal m:sehr
G fragen acc:W nach+dat:Spiel,Gegner
G feiern acc:Mannschaft,Sieg m:laut
Mannschaft an|greifen m:schnell
"""

TOWN_HALL = """
title: Aus dem Rathaus / Neues aus der Stadt / Der Plan der Stadt
W der Bürgermeister -s Bürgermeister: beliebt klug
W die Bürgermeisterin - Bürgermeisterinnen: beliebt klug
W die Beamtin - Beamtinnen: höflich genau
W der Architekt -en Architekten: jung bekannt
G der Bürger -s Bürger: unzufrieden zufrieden
G die Bürgerin - Bürgerinnen: unzufrieden zufrieden
G der Anwohner -s Anwohner: müde unzufrieden
T der Plan -es Pläne: neu teuer kühn
T der Antrag -s Anträge: lang neu
B die Straße - Straßen: breit laut lang
B die Brücke - Brücken
B der Spielplatz -es Spielplätze: groß sauber
B der Vorschlag -s Vorschläge: klug neu billig
T der Vertrag -s Verträge: lang gültig
B die Baustelle - Baustellen: laut groß
B das Projekt -s Projekte: teuer wichtig
B die Schule - Schulen
B der Turm -es Türme: hoch alt
M der Verkehr -s -: stark laut
M das Geld -es -: knapp
in das Rathaus -es Rathäuser: alt neu schön
in die Stadt - Städte: klein alt schön
auf der Markt -es Märkte: bunt voll
in das Büro -s Büros: klein hell
X die Seite - Seiten: leer lang < Vertrag Antrag
W planen acc:Brücke,Straße,Spielplatz,Schule m
W beschließen acc:Projekt,Plan
W ab|lehnen acc:Antrag,Vorschlag,Projekt
W eröffnen acc:Brücke,Spielplatz,Schule m:feierlich
W zeigen dat:G acc:Plan,Turm,Baustelle m:gern
W unterschreiben acc:Vertrag,Antrag
W versprechen dat:G acc:Spielplatz,Brücke,Schule
W bauen acc:Brücke,Straße,Turm
W sanieren acc:Straße,Schule,Turm m
W prüfen acc:Antrag,Vertrag,Vorschlag m
W verhandeln über+acc:Vertrag,Projekt m:lange,geduldig
G schreiben acc:Antrag m
G sich+beschweren über+acc:Baustelle,Verkehr,Plan m:laut
G ab|stimmen über+acc:Vorschlag,Plan,Projekt
G diskutieren über+acc:Plan,Straße,Projekt m:lange,laut
G fordern acc:Spielplatz,Schule,Brücke m:laut
G fragen acc:W nach+dat:Plan,Projekt,Baustelle
"""
